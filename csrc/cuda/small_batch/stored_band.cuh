#pragma once
// Bounded sums from stored scores, and their gradient. One warp per row of scores votes on the
// words of the row's mask; the gradient is a product of rows, weighted by the mask.

#include "cuda/small_batch/row_gradient.cuh"
#include "cuda/small_batch/score_reductions.cuh"
#include "cuda/small_batch/stored_band.h"
#include "cuda/small_batch/unit_rows.cuh"

namespace itm::cuda {

template <typename C>
struct BandRule {
  const int64_t* ids;  // or null
  C low, high;
  bool unit, repel, propagate_infinite;  // as in StoredBand
};

// The sum of row n, by one warp; writes the words of the row's mask, unless it is null.
template <typename C>
__device__ __forceinline__ double sum_band(const Scores<C>& scores, const BandRule<C>& rule, int n,
                                           uint32_t* mask) {
  const int N = scores.N;
  double sum = 0;
  const int64_t id = rule.ids ? rule.ids[n] : n;
  for (int first = lane(); first - lane() < N; first += 32 * kAtOnce) {
    int at[kAtOnce];
    int64_t other[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int m = within(first + 32 * k, N);
      at[k] = n * N + m, other[k] = rule.ids ? rule.ids[m] : m;
    }
    C score[kAtOnce];
    scores.read(at, score);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int m = first + 32 * k;
      const C key = rule.unit ? 1 - score[k] : score[k];
      // "Not outside", so that NaN counts as inside and propagates.
      const bool negative = (id != other[k]) | (key != key);
      const bool inside = (m < N) & !(key <= rule.low) & !(key >= rule.high) & negative;
      if (inside) sum += rule.repel ? rule.high - key : key;
      if (rule.propagate_infinite && n == m) sum += 0 * key;
      const unsigned word = __ballot_sync(~0u, inside);
      if (mask && lane() == 0 && m < N) mask[m / 32] = word;
    }
  }
  return warp_sum(sum);
}

template <typename C>
__global__ void __launch_bounds__(kRowThreads, kReductionBlocks)
    stored_band_kernel(StoredBand band, Scores<C> scores, int64_t first) {
  wait_for_launch_before();
  const int n = static_cast<int>(first + blockIdx.x) * kRowWarps + warp();
  if (n >= scores.N) return;
  const C low = static_cast<C>(band.low), high = static_cast<C>(band.high);
  const BandRule<C> rule{band.ids, low, high, band.unit, band.repel, band.propagate_infinite};
  const double sum = sum_band(scores, rule, n, band.mask ? band.mask + n * band.words : nullptr);
  if (lane() != 0) return;
  static_cast<C*>(band.row)[n] = static_cast<C>(sum);
  static_cast<C*>(band.low_of_row)[n] = low;
  static_cast<C*>(band.high_of_row)[n] = high;
  static_cast<C*>(band.norm)[n] = 1;
}

// The gradient of a band: the rows of x, or differences of rows, weighted by the bits of the mask.
template <typename C, bool kOverDistances>
struct BandGradient : ScoreGradientBase<C> {
  static constexpr int kSources = 2;  // source 0, the other side, has no rows
  static constexpr bool kSparse = true, kDifferences = kOverDistances;

  const uint32_t* mask;
  int words;
  Strided<C> grad;
  C sign;
  const C *distance, *row_sum;
  Matrix rows_of_x;

  explicit BandGradient(const StoredBandGradient& from)
      : mask(from.mask),
        words(static_cast<int>(from.words)),
        grad(from.grad),
        sign(static_cast<C>(from.sign)),
        distance(static_cast<const C*>(from.distance)),
        row_sum(static_cast<const C*>(from.row_sum)),
        rows_of_x(from.y) {}

  struct Read {
    bool inside = false;
    C own = 0, other = 0, distance = 1;
  };
  __device__ __forceinline__ Read read(bool, int, int own, int other) const {
    const uint32_t word = mask[own * words + other / 32];
    Read found{(word >> other % 32 & 1) != 0, grad[own], grad[other], C(1)};
    if constexpr (kOverDistances)
      found.distance = distance[own * static_cast<int>(rows_of_x.rows) + other];
    return found;
  }
  __device__ __forceinline__ PairWeight<C> weight_of(bool, int, int own, int other,
                                                     const Read& read) const {
    C weight = read.inside ? sign * (read.own + read.other) : C(0);
    if constexpr (kOverDistances) {
      if (read.inside) weight = read.distance == 0 ? C(0) : weight / read.distance;
    } else if (row_sum && own == other && own < static_cast<int>(rows_of_x.rows)) {
      weight += 0 * row_sum[own];
    }
    return {weight, C(0)};
  }
  static __device__ __forceinline__ bool counts(int, const Read& read, C weight) {
    return read.inside || weight != 0;
  }

  template <typename T>
  __device__ __forceinline__ Rows<T> rows(bool, int) const {
    return {static_cast<const T*>(rows_of_x.data), rows_of_x.rows, rows_of_x.stride, 0};
  }
};

}  // namespace itm::cuda
