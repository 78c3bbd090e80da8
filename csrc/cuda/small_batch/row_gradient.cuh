#pragma once
// The gradients of the rows of both sides of a small batch, in one launch: the gradients of all
// scores, as weights, times the rows of the other side. Weights are computed from the results of
// the forward pass when they are needed. If scores were cosines of raw rows, the kernel ends with
// the gradient of the normalisation.
//
// A loss passes Pairs, which inherits from ScoreGradientBase<C> and defines the weight of a pair:
//
//   Read                    the values loaded for a pair while earlier products are computed
//   Read read(of_x, source, own, other)
//   PairWeight<C> weight_of(of_x, source, own, other, read)
//                           the weight of row `other` in the gradient of row `own`, of x or of y,
//                           and, if rows are raw, the pair's component along row `own`
//   kSources, Rows<T> rows(of_x, source)
//                           the gradient of a side may add products with several matrices: source 0
//                           is the other side, `rows` returns the others
//   kUnit, C inverse(of_x, own), C along(of_x, own)
//                           rows are raw: 1 / norm, 0 for a row without a direction. A pair's
//                           weight includes the other row's 1 / norm; its component along `own`
//                           is the weight without it, times the cosine; `along` is added to these
//   kDifferences            the weight is multiplied by row `own` minus row `other`
//   kSparse, bool counts(source, read, weight)
//                           most weights are 0: a tile of 16 x 32 zeros is skipped, and rows that
//                           do not count contribute nothing, even if infinite
//   C factor()              the factor of all gradients
//   void finish()           the work of one additional block, if the launch has one: scalars

#include "cuda/distances/tile.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/score_reductions.cuh"
#include "cuda/small_batch/unit_rows.cuh"

namespace itm::cuda {

template <typename C>
struct PairWeight {
  C weight, along;
};

// Defaults: one source, rows that need no normalisation, no scalars.
template <typename C>
struct ScoreGradientBase {
  static constexpr int kSources = 1;
  static constexpr bool kUnit = false, kSparse = false, kDifferences = false;

  template <typename T>
  __device__ __forceinline__ Rows<T> rows(bool, int) const {
    return {};
  }
  __device__ __forceinline__ C inverse(bool, int) const { return 1; }
  __device__ __forceinline__ C along(bool, int) const { return 0; }
  __device__ __forceinline__ C factor() const { return 1; }
  __device__ __forceinline__ void finish() const {}
};

// 16 rows by 64 columns of a gradient for 64 threads, which load 32 rows of the other side at once:
// 256 blocks for 128 pairs and D = 1024.
template <typename T_>
struct RowGradientTile {
  using T = T_;
  using C = Wide<T>;
  static constexpr int kRows = 16, kColumns = 64, kThreads = 64, kDepth = 32;
  static constexpr int kPitch = kRows + 4;  // fewer bank conflicts among 32 writes
  static constexpr int kWeights = kDepth * kPitch, kStage = kWeights + kDepth * kColumns;
  static constexpr size_t kSharedBytes = 2 * kStage * sizeof(C);
  // Blocks per multiprocessor; its shared memory does not hold more of fp64.
  static constexpr int kBlocks = sizeof(C) == 8 ? 4 : 6;
  static constexpr int kMine = kRows * kDepth / kThreads;  // weights loaded by a thread
};

// The rows of one side, and their gradient [rows.count, D].
template <typename T>
struct GradientSide {
  Rows<T> rows;
  T* out;
};

// along[i] is the component from a thread's weights i: of rows warp() + 2 i, or all of row
// threadIdx.x % 16. The sum of each of a tile's 16 rows is then in shared[row] + shared[16 + row].
template <typename Tile>
__device__ __forceinline__ void sum_along(const Shared<typename Tile::C>& shared, bool of_x,
                                          const typename Tile::C (&along)[Tile::kMine]) {
  using C = typename Tile::C;
  __syncthreads();  // no thread reads products any more
  if (of_x) {
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i) {
      const C sum = warp_sum(along[i]);
      if (lane() < 2) shared.write(lane() * Tile::kRows + warp() + 2 * i, lane() ? C(0) : sum);
    }
  } else {
    C sum = 0;
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i) sum += along[i];
    sum += __shfl_xor_sync(~0u, sum, Tile::kRows);
    if (lane() < Tile::kRows) shared.write(warp() * Tile::kRows + lane(), sum);
  }
  __syncthreads();
}

template <typename T, typename Pairs>
__global__ void __launch_bounds__(RowGradientTile<T>::kThreads,
                                  Pairs::kDifferences ? 4 : RowGradientTile<T>::kBlocks)
    row_gradient_kernel(Pairs pairs, GradientSide<T> x, GradientSide<T> y, int64_t D,
                        int64_t first_block) {
  using Tile = RowGradientTile<T>;
  using C = Wide<T>;
  wait_for_launch_before();
  const auto in_row = static_cast<unsigned>(ceil_div(D, Tile::kColumns));
  const auto block = static_cast<unsigned>(first_block + blockIdx.x);
  const int rows_of_x = (static_cast<int>(x.rows.count) + Tile::kRows - 1) / Tile::kRows;
  const int rows_of_y = (static_cast<int>(y.rows.count) + Tile::kRows - 1) / Tile::kRows;
  const int row_of_all = static_cast<int>(block / in_row);
  if (row_of_all == rows_of_x + rows_of_y) return pairs.finish();
  const bool of_x = row_of_all < rows_of_x;
  const int first = (of_x ? row_of_all : row_of_all - rows_of_x) * Tile::kRows;
  const int64_t d = block % in_row * int64_t{Tile::kColumns};
  const int own = static_cast<int>(of_x ? x.rows.count : y.rows.count);
  const int thread = static_cast<int>(threadIdx.x), columns = window(D - d, Tile::kColumns);
  const auto shared = Shared<C>::template all<2 * Tile::kStage>();
  // Adjacent threads read adjacent weights of a row: they differ in the row of the other side or,
  // for the transpose, in the row of the gradient.
  const int row = of_x ? thread / Tile::kDepth : thread % Tile::kRows;
  const int depth = of_x ? thread % Tile::kDepth : thread / Tile::kRows;
  const int row_step = of_x ? Tile::kThreads / Tile::kDepth : 0;
  const int depth_step = of_x ? 0 : Tile::kThreads / Tile::kRows;
  const int own_row = thread / 16 * 4, own_column = thread % 16 * 4;
  Four<C> sum[4] = {};
  C along[Tile::kMine] = {};

  const auto rows_of = [&](int source) {
    const Rows<T> further =
        source == 0 ? Rows<T>{} : pairs.template rows<T>(of_x, source);  // of a further source
    return Rows<T>{source ? further.data
                   : of_x ? y.rows.data
                          : x.rows.data,
                   source ? further.count
                   : of_x ? y.rows.count
                          : x.rows.count,
                   source ? further.stride
                   : of_x ? y.rows.stride
                          : x.rows.stride,
                   0};
  };

  Four<C> mine[4] = {};  // this thread's part of its own rows
  if constexpr (Pairs::kDifferences) {
    const Rows<T> rows = of_x ? x.rows : y.rows;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const T* from = rows.data + (first + own_row + r) * rows.stride + d + own_column;
      if (first + own_row + r >= own || own_column >= columns) break;
      const auto four = *reinterpret_cast<const Four<T>*>(from);
#pragma unroll
      for (int e = 0; e < 4; ++e) mine[r].v[e] = widen(four.v[e]);
    }
  }
  const auto factor_of = [&](int r, int e, C value) {
    return Pairs::kDifferences ? mine[r].v[e] - value : value;
  };

#pragma unroll 1
  for (int source = 0; source < Pairs::kSources; ++source) {
    const Rows<T> rows = rows_of(source);
    const int others = static_cast<int>(rows.count);
    if (others == 0) continue;
    if (source) __syncthreads();  // no thread reads the previous source any more
    TileLoader<T, Tile::kDepth, Tile::kColumns, Tile::kColumns, Tile::kThreads> feed(rows, 0, d);
    typename Pairs::Read pending[Tile::kMine];
    const auto fetch = [&](int at, int stage) {
      feed.fetch(shared, stage + Tile::kWeights, window(others - at, Tile::kDepth), columns);
      close_copies();
      feed.next_rows();
#pragma unroll
      for (int i = 0; i < Tile::kMine; ++i) {
        const int r = first + row + i * row_step, k = at + depth + i * depth_step;
        pending[i] = typename Pairs::Read{};
        if (r < own && k < others) pending[i] = pairs.read(of_x, source, r, k);
      }
    };
    bool weighs = false;  // whether any of this thread's last weights is not 0
    const auto deposit = [&](int at, int stage) {
      feed.deposit(shared, stage + Tile::kWeights);
      weighs = false;
#pragma unroll
      for (int i = 0; i < Tile::kMine; ++i) {
        const int r = first + row + i * row_step, k = at + depth + i * depth_step;
        PairWeight<C> found{};
        // Pairs that were not read have weight 0; without normalisation, weight_of reads nothing
        // else.
        if (!Pairs::kUnit || (r < own && k < others))
          found = pairs.weight_of(of_x, source, r, k, pending[i]);
        shared.write(stage + (depth + i * depth_step) * Tile::kPitch + row + i * row_step,
                     found.weight);
        if (Pairs::kUnit) along[i] += found.along;
        if (Pairs::kSparse) weighs |= found.weight != 0;
      }
    };
    fetch(0, 0);
    deposit(0, 0);
    for (int at = 0, stage = 0; at < others; at += Tile::kDepth, stage = Tile::kStage - stage) {
      const bool more = at + Tile::kDepth < others;
      wait_for_copies<0>();
      bool any = true;
      if constexpr (Pairs::kSparse)
        any = __syncthreads_or(weighs);
      else
        __syncthreads();
      if (more) fetch(at + Tile::kDepth, Tile::kStage - stage);
#pragma unroll 4
      for (int k = 0; k < (any ? Tile::kDepth : 0); ++k) {
        const auto weight = shared.template read<Four<C>>(stage + k * Tile::kPitch + own_row);
        const auto value =
            shared.template read<Four<C>>(stage + Tile::kWeights + k * Tile::kColumns + own_column);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[r].v[e] += weight.v[r] * factor_of(r, e, value.v[e]);
      }
      if (more) deposit(at + Tile::kDepth, Tile::kStage - stage);
    }
  }

  if constexpr (Pairs::kSparse) {
    // NaN and Inf come from a row that counts, or from one that does not, times 0: the sums are
    // computed again from the rows that count.
    bool finite = true;
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int e = 0; e < 4; ++e) finite &= sum[r].v[e] - sum[r].v[e] == 0;
    if (!finite) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[r] = {};
#pragma unroll 1
      for (int source = 0; source < Pairs::kSources; ++source) {
        const Rows<T> rows = rows_of(source);
#pragma unroll 1
        for (int k = 0; k < static_cast<int>(rows.count) && own_column < columns; ++k) {
          const auto value =
              *reinterpret_cast<const Four<T>*>(rows.data + k * rows.stride + d + own_column);
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const int n = first + own_row + r;
            if (n >= own) break;
            const auto read = pairs.read(of_x, source, n, k);
            const C weight = pairs.weight_of(of_x, source, n, k, read).weight;
            if (!pairs.counts(source, read, weight)) continue;
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[r].v[e] += weight * factor_of(r, e, widen(value.v[e]));
          }
        }
      }
    }
  }
  T* const out = of_x ? x.out : y.out;
  const C factor = pairs.factor();
  if constexpr (Pairs::kUnit) sum_along<Tile>(shared, of_x, along);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int n = first + own_row + r;
    if (n >= own) break;
    C scale = factor, radial = 0;  // the component along the row itself
    const T* here = nullptr;
    if constexpr (Pairs::kUnit) {
      const C inverse = pairs.inverse(of_x, n);
      // A unit vector has no derivative along itself; a row below the smallest norm is not
      // normalised.
      if (inverse < 1 / C(kSmallestNorm) || inverse != inverse)
        radial = inverse * (shared.read(own_row + r) + shared.read(Tile::kRows + own_row + r) +
                            pairs.along(of_x, n));
      scale *= inverse;
      here = (of_x ? x.rows.data : y.rows.data) + n * (of_x ? x.rows.stride : y.rows.stride) + d;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (own_column + e < columns) {
        C value = sum[r].v[e];
        if constexpr (Pairs::kUnit) value -= radial * widen(here[own_column + e]);
        narrow(scale * value, out[n * D + d + own_column + e]);
      }
  }
}

template <typename T, typename Pairs>
void launch_row_gradient(const Pairs& pairs, const SideGradients& to, void* stream, bool finish) {
  using Tile = RowGradientTile<T>;
  const auto side = [](const Matrix& rows, void* out) {
    return GradientSide<T>{{static_cast<const T*>(rows.data), rows.rows, rows.stride, 0},
                           static_cast<T*>(out)};
  };
  const int64_t rows = ceil_div(to.x.rows, Tile::kRows) + ceil_div(to.y.rows, Tile::kRows);
  in_launches(rows * ceil_div(to.D, Tile::kColumns) + finish, [&](int64_t first, int64_t count) {
    launch(row_gradient_kernel<T, Pairs>, count, Tile::kThreads, Tile::kSharedBytes, stream, pairs,
           side(to.x, to.to_x), side(to.y, to.to_y), to.D, first);
  });
}

}  // namespace itm::cuda
