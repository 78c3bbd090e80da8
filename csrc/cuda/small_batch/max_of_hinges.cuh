#pragma once
// Max of hinges and hardest negatives of a small batch: maxima over stored scores. In the backward
// pass, every row of the gradient gathers the pairs that refer to it. Nothing is scattered, so the
// order of all additions is fixed.

#include "cuda/distances/tile.cuh"
#include "cuda/small_batch/grid_sum.cuh"
#include "cuda/small_batch/max_of_hinges.h"
#include "cuda/small_batch/score_reductions.cuh"

namespace itm::cuda {

// Adds a pair to the search for the hardest negative; semi-hard negatives lie below a limit.
template <typename C>
struct MineHardest {
  bool below;
  C limit;

  __device__ __forceinline__ void operator()(Hardest<C>& state, int at, C score, bool same) const {
    if (!same && !(below && score >= limit)) state.add(score, at);
  }
};

// Replaces both indices of a pair whose loss is NaN. The gradients of its two rows are then NaN,
// even if the rows that its hinges select are finite.
constexpr int kNanPair = -2;

template <typename C>
struct HingeReduction {
  Scores<C> scores;
  Pairing pairing;
  C margin;
  bool semihard;
  C* loss;
  int64_t *text_index, *image_index;

  // Called by a block, for the pairs of texts [first, first + 8).
  __device__ __forceinline__ void run(int first) const {
    const int own = first + lane() % kAnchors, j = first + warp();
    const C limit = own < scores.M ? positive_score(scores, pairing, own) : C(0);
    const auto image =
        reduce_columns<Hardest<C>>(scores, pairing, first, MineHardest<C>{semihard, limit});
    if (j >= scores.M) return;
    const C positive = __shfl_sync(~0u, limit, warp());
    const int i = positive_of(pairing.positive, j);
    const auto text =
        reduce_row<Hardest<C>>(scores, pairing, i < 0 ? 0 : i, MineHardest<C>{semihard, positive});
    if (lane()) return;
    const C a = hinge(margin + text.value - positive), b = hinge(margin + image.value - positive);
    const C both = a + b + 0 * positive;  // propagates an infinite positive score
    loss[j] = both;
    const bool nan = both != both;
    text_index[j] = nan ? kNanPair : a != 0 ? text.index : -1;
    image_index[j] = nan ? kNanPair : b != 0 ? image.index : -1;
  }
};

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    max_of_hinges_kernel(int64_t first_block, HingeReduction<C> reduction, GridTotal<C> total) {
  wait_for_launch_before();
  reduction.run(first_anchor(first_block));
  total.add(reduction.scores.M);
}

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    hardest_negatives_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, C* positive,
                             C* text_score, int64_t* text_index, C* image_score,
                             int64_t* image_index) {
  wait_for_launch_before();
  const int first = first_anchor(first_block), own = first + warp();
  const Hardest<C> image = reduce_columns<Hardest<C>>(scores, pairing, first, MineHardest<C>{});
  if (own < scores.M && lane() == 0) {
    positive[own] = positive_score(scores, pairing, own);
    image_score[own] = image.value;
    image_index[own] = image.index;
  }
  if (own >= scores.N) return;
  const Hardest<C> text = reduce_row<Hardest<C>>(scores, pairing, own, MineHardest<C>{});
  if (lane()) return;
  text_score[own] = text.value;
  text_index[own] = text.index;
}

// -- backward --

// The gradient of one score; image is -1 if there is none.
template <typename C>
struct PairGradient {
  int image = -1, text = -1;
  C weight = 0;
};

// Every pair contributes the gradients of its two hardest negatives, and of its own score once for
// each.
template <typename C>
struct HingeGradients {
  Strided<C> grad;
  C weight;
  bool nan_if_unmatched;
  const int64_t *positive, *text_index, *image_index;
  int M;

  __device__ __forceinline__ int count() const { return 3 * M; }
  __device__ __forceinline__ PairGradient<C> at(int k) const {
    const int kind = k < M ? 0 : k < 2 * M ? 1 : 2, j = k - kind * M;
    const int i = positive_of(positive, j);
    const int text = static_cast<int>(text_index[j]), image = static_cast<int>(image_index[j]);
    const C pair_grad = weight * grad[j];  // loaded together with the others
    const int active = (text >= 0) + (image >= 0);
    if (kind == 2 && text == kNanPair && (i >= 0 || nan_if_unmatched))
      return {i < 0 ? 0 : i, j, kNan<C>};
    if (i < 0 || active == 0) return {};
    if (kind == 0) return {text < 0 ? -1 : i, text, pair_grad};
    if (kind == 1) return {image, j, pair_grad};
    return {i, j, -pair_grad * static_cast<C>(active)};
  }
};

template <typename C>
struct HardestGradients {
  Strided<C> of_positive, of_text, of_image;
  const int64_t *positive, *text_index, *image_index;
  int N, M;

  __device__ __forceinline__ int count() const { return N + 2 * M; }
  __device__ __forceinline__ PairGradient<C> at(int k) const {
    if (k < N) {
      const int text = static_cast<int>(text_index[k]);
      return {text < 0 ? -1 : k, text, of_text[k]};
    }
    const int j = k - N < M ? k - N : k - N - M;
    if (k - N < M) return {static_cast<int>(image_index[j]), j, of_image[j]};
    return {positive_of(positive, j), j, of_positive[j]};
  }
};

template <typename T>
struct StridedRows {
  const T* data;
  int count;
  int64_t stride, column_stride;

  explicit StridedRows(const AnyRows& from)
      : data(static_cast<const T*>(from.data)),
        count(static_cast<int>(from.rows)),
        stride(from.stride),
        column_stride(from.column_stride) {}
};

// 256 columns of a row for 8 warps. Rows are read with any strides, so none needs a copy.
struct Gather {
  static constexpr int kThreads = 256, kWarps = kThreads / 32, kColumns = 256;
  static constexpr int kOwn = kColumns / 32;  // columns of a lane
  static constexpr int kRun = 4;              // gradients in one memory sector
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr bool kFew = true;  // registers are left: bf16 takes 128 there
#else
  static constexpr bool kFew = false;
#endif
  // Rows that a warp loads at once.
  template <typename T>
  static constexpr int kRows = sizeof(T) == 8 || (kFew && std::is_same_v<T, BFloat16>) ? 2 : 4;
  template <typename C>
  static constexpr size_t kSharedBytes = kWarps * kColumns * sizeof(C);
};

// Row n of one side is a sum of rows of the other. Each warp searches an eighth of all gradients,
// in runs of four, and adds the rows of those at row n; then the block adds its warps' sums. A text
// that is the hardest of 128 images gives each warp 16 rows, four of them in flight at once, with
// their gradients already loaded: a warp waits 5 times. An earlier version, in which threads
// searched one list in turn and loaded two rows at once, waited 64 times for gradients and 64 times
// for rows.
template <typename T, typename Gradients>
__global__ void __launch_bounds__(Gather::kThreads, sizeof(T) == 8 ? 2 : 3)
    gather_kernel(Gradients gradients, StridedRows<T> image, StridedRows<T> text, int64_t D,
                  int64_t first_block, T* to_image, T* to_text) {
  using C = Wide<T>;
  constexpr int kRows = Gather::kRows<T>;
  wait_for_launch_before();
  const auto block = static_cast<unsigned>(first_block + blockIdx.x);
  const auto in_row = static_cast<unsigned>(ceil_div(D, Gather::kColumns));
  const int target = static_cast<int>(block / in_row);
  const bool of_image = target < image.count;
  const int n = of_image ? target : target - image.count;
  const int64_t column = block % in_row * int64_t{Gather::kColumns};

  const int total = gradients.count(), left = window(D - column, Gather::kColumns) - lane();
  const int64_t stride = of_image ? text.stride : image.stride;
  const int64_t column_stride = of_image ? text.column_stride : image.column_stride;
  const T* const from = (of_image ? text.data : image.data) + (column + lane()) * column_stride;
  const auto read = [&](int first) {
    const int run = first / Gather::kRun + lane() / Gather::kRun * Gather::kWarps + warp();
    const int k = run * Gather::kRun + lane() % Gather::kRun;
    return k < total ? gradients.at(k) : PairGradient<C>{};
  };
  C sum[Gather::kOwn] = {};
  PairGradient<C> next = read(0);
  for (int first = 0; first < total; first += Gather::kThreads) {
    const PairGradient<C> own = next;
    next = read(first + Gather::kThreads);
    const int other = of_image ? own.text : own.image;
    const bool here = own.image >= 0 && (of_image ? own.image : own.text) == n;
    for (unsigned all = __ballot_sync(~0u, here); all;) {
      C weight[kRows];
      T value[kRows][Gather::kOwn];  // widened once all loads are in flight
      bool found[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        found[i] = all != 0;
        const int at = found[i] ? __popc((all & -all) - 1) : 0;
        all &= all - 1;
        weight[i] = __shfl_sync(~0u, own.weight, at);
        const T* row = from + __shfl_sync(~0u, other, at) * stride;
#pragma unroll
        for (int e = 0; e < Gather::kOwn; ++e)
          value[i][e] = found[i] && 32 * e < left ? row[32 * e * column_stride] : T{};
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int e = 0; e < Gather::kOwn; ++e)
          if (found[i]) sum[e] += weight[i] * widen(value[i][e]);
    }
  }
  const auto shared = Shared<C>::template all<Gather::kWarps * Gather::kColumns>();
#pragma unroll
  for (int e = 0; e < Gather::kOwn; ++e)
    shared.write(warp() * Gather::kColumns + 32 * e + lane(), sum[e]);
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  C whole = 0;
#pragma unroll
  for (int w = 0; w < Gather::kWarps; ++w) whole += shared.read(w * Gather::kColumns + thread);
  if (column + thread < D) narrow(whole, (of_image ? to_image : to_text)[n * D + column + thread]);
}

}  // namespace itm::cuda
