#pragma once
// The backward pass of sums over all pairs of a small batch: one launch makes the gradient of every
// score, one sends it to the rows of both sides. A block more adds up the gradients of scalars.

#include "cuda/pairs.cuh"
#include "cuda/tile.cuh"
#include "cuda/total.cuh"

namespace itm::cuda {

// weights[n][m] = scale times the gradient of logit [n][m]; of_scale[n] and of_bias[n], unless it
// is null, what row n adds to the gradients of scale and bias. A warp has a row.
template <typename C, typename OfLogit>
__global__ void __launch_bounds__(kFoldThreads, kFoldBlocks)
    weigh_kernel(int64_t first_block, Scores<C> scores, OfLogit of_logit, const C* scale,
                 C* weights, C* of_scale, C* of_bias) {
  const int n = first_anchor(first_block) + warp();
  if (n >= scores.N) return;
  const C factor = *scale;
  C product = 0, sum = 0;
  for (int first = lane(); first < scores.M; first += 32 * kAtOnce) {
    int at[kAtOnce];
    typename OfLogit::Place place[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int m = within(first + 32 * k, scores.M);
      at[k] = n * scores.M + m, place[k] = of_logit.read(n, m);
    }
    C score[kAtOnce];
    scores.read(at, score);
#pragma unroll
    for (int k = 0; k < kAtOnce && first + 32 * k < scores.M; ++k) {
      const C gradient = of_logit.at(place[k], score[k], factor);
      weights[at[k]] = factor * gradient;
      if (gradient == 0) continue;  // an excluded pair's score may be infinite
      product += gradient * score[k];
      sum += gradient;
    }
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    product += __shfl_xor_sync(~0u, product, lanes);
    sum += __shfl_xor_sync(~0u, sum, lanes);
  }
  if (lane()) return;
  of_scale[n] = product;
  if (of_bias) of_bias[n] = sum;
}

// Weights [N, M] as they were stored.
template <typename C>
struct StoredWeights {
  const C* data;
  int M;
  __device__ __forceinline__ C at(int n, int m) const { return data[n * M + m]; }
};

// 16 rows by 64 columns of a gradient for 64 threads, which pass 32 rows of the other side at once:
// of 128 pairs and D = 1024, 256 blocks.
template <typename T_>
struct WeightedTile {
  using T = T_;
  using C = Wide<T>;
  static constexpr int kRows = 16, kColumns = 64, kThreads = 64, kDepth = 32;
  static constexpr int kPitch = kRows + 4;  // so that fewer of 32 writes meet in a bank
  static constexpr int kWeights = kDepth * kPitch, kStage = kWeights + kDepth * kColumns;
  static constexpr size_t kSharedBytes = 2 * kStage * sizeof(C);
  static constexpr int kMine = kRows * kDepth / kThreads;  // weights that a thread brings
};

// One side of the products: out = weights times `rows`, or, for the other side, its transpose.
template <typename T>
struct WeightedSide {
  Rows<T> rows;
  int count;  // of rows of out
  T* out;     // [count, D]
};

template <typename C>
struct ScalarSums {
  ScalarSum<C> scale, bias;
};

template <typename T, typename Weights>
__global__ void __launch_bounds__(WeightedTile<T>::kThreads, 6)
    weighted_kernel(Weights weights, WeightedSide<T> of_x, WeightedSide<T> of_y, int64_t D,
                    ScalarSums<Wide<T>> scalars, int64_t first_block) {
  using Tile = WeightedTile<T>;
  using C = Wide<T>;
  const auto in_row = static_cast<unsigned>(ceil_div(D, Tile::kColumns));
  const auto block = static_cast<unsigned>(first_block + blockIdx.x);
  const int rows_of_x = (of_x.count + Tile::kRows - 1) / Tile::kRows;
  const int rows_of_y = (of_y.count + Tile::kRows - 1) / Tile::kRows;
  const int row_of_all = static_cast<int>(block / in_row);
  if (row_of_all == rows_of_x + rows_of_y)
    return warp() == 0 ? scalars.scale.add(of_x.count) : scalars.bias.add(of_x.count);
  const bool is_x = row_of_all < rows_of_x;
  const int first = (is_x ? row_of_all : row_of_all - rows_of_x) * Tile::kRows;
  const int64_t d = block % in_row * int64_t{Tile::kColumns};
  const Rows<T> rows{is_x ? of_x.rows.data : of_y.rows.data,
                     is_x ? of_x.rows.count : of_y.rows.count,
                     is_x ? of_x.rows.stride : of_y.rows.stride, 0};
  const int own = is_x ? of_x.count : of_y.count, others = static_cast<int>(rows.count);
  const int thread = static_cast<int>(threadIdx.x), columns = window(D - d, Tile::kColumns);

  const auto shared = Shared<C>::template all<2 * Tile::kStage>();
  Feed<T, Tile::kDepth, Tile::kColumns, Tile::kColumns, Tile::kThreads> feed(rows, 0, d);
  // Neighbouring threads read neighbours of a row of weights: they differ in what is passed, or,
  // for the transpose, in the row of the gradient.
  const int row = is_x ? thread / Tile::kDepth : thread % Tile::kRows;
  const int depth = is_x ? thread % Tile::kDepth : thread / Tile::kRows;
  const int row_step = is_x ? Tile::kThreads / Tile::kDepth : 0;
  const int depth_step = is_x ? 0 : Tile::kThreads / Tile::kRows;
  C pending[Tile::kMine];
  const auto fetch = [&](int at, int stage) {
    feed.fetch(shared, stage + Tile::kWeights, window(others - at, Tile::kDepth), columns);
    close_copies();
    feed.next_rows();
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i) {
      const int r = first + row + i * row_step, k = at + depth + i * depth_step;
      pending[i] = r < own && k < others ? weights.at(is_x ? r : k, is_x ? k : r) : C(0);
    }
  };
  const auto deposit = [&](int stage) {
    feed.deposit(shared, stage + Tile::kWeights);
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i)
      shared.write(stage + (depth + i * depth_step) * Tile::kPitch + row + i * row_step,
                   pending[i]);
  };

  const int own_row = thread / 16 * 4, own_column = thread % 16 * 4;
  Four<C> sum[4] = {};
  fetch(0, 0);
  deposit(0);
  for (int at = 0, stage = 0; at < others; at += Tile::kDepth, stage = Tile::kStage - stage) {
    const bool more = at + Tile::kDepth < others;
    wait_for_copies<0>();
    __syncthreads();
    if (more) fetch(at + Tile::kDepth, Tile::kStage - stage);
#pragma unroll 4
    for (int k = 0; k < Tile::kDepth; ++k) {
      const auto weight = shared.template read<Four<C>>(stage + k * Tile::kPitch + own_row);
      const auto value =
          shared.template read<Four<C>>(stage + Tile::kWeights + k * Tile::kColumns + own_column);
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[r].v[e] += weight.v[r] * value.v[e];
    }
    if (more) deposit(Tile::kStage - stage);
  }
  T* out = is_x ? of_x.out : of_y.out;
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (first + own_row + r < own && own_column + e < columns)
        narrow(sum[r].v[e], out[(first + own_row + r) * D + d + own_column + e]);
}

template <typename T, typename Weights>
void launch_weighted(const Weights& weights, const WeightedRows& to,
                     const ScalarSums<Wide<T>>& scalars, void* stream) {
  using Tile = WeightedTile<T>;
  const auto side = [&](const Matrix& others, int64_t count, void* out) {
    return WeightedSide<T>{{static_cast<const T*>(others.data), others.rows, others.stride, 0},
                           static_cast<int>(count),
                           static_cast<T*>(out)};
  };
  const int64_t rows = ceil_div(to.x.rows, Tile::kRows) + ceil_div(to.y.rows, Tile::kRows);
  in_launches(rows * ceil_div(to.D, Tile::kColumns) + (scalars.scale.parts != nullptr),
              [&](int64_t first, int64_t count) {
                launch(weighted_kernel<T, Weights>, count, Tile::kThreads, Tile::kSharedBytes,
                       stream, weights, side(to.y, to.x.rows, to.to_x),
                       side(to.x, to.y.rows, to.to_y), to.D, scalars, first);
              });
}

}  // namespace itm::cuda
