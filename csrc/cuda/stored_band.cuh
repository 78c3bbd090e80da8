#pragma once
// Bounded sums from stored scores, and their gradient: a warp a row of scores, whose votes are the
// words of its mask; a block a row of the gradient, whose weights are in shared memory.

#include "cuda/pairs.cuh"
#include "cuda/stored_band.h"
#include "cuda/tile.cuh"
#include "cuda/unit_rows.cuh"

namespace itm::cuda {

template <typename C>
struct BandRule {
  const int64_t* ids;  // or null
  C low, high;
  bool unit, repel, show_infinite;  // as StoredBand says
};

// The sum of row n, by one warp, and the words of its mask, unless they are null.
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
      // "Not outside", so that what is not a number is inside and shows.
      const bool negative = (id != other[k]) | (key != key);
      const bool inside = (m < N) & !(key <= rule.low) & !(key >= rule.high) & negative;
      if (inside) sum += rule.repel ? rule.high - key : key;
      if (rule.show_infinite && n == m) sum += 0 * key;
      const unsigned word = __ballot_sync(~0u, inside);
      if (mask && lane() == 0 && m < N) mask[m / 32] = word;
    }
  }
  return warp_sum(sum);
}

template <typename C>
__global__ void __launch_bounds__(kRowThreads, kFoldBlocks)
    stored_band_kernel(StoredBand band, Scores<C> scores, int64_t first) {
  wait_for_launch_before();
  const int n = static_cast<int>(first + blockIdx.x) * kRowWarps + warp();
  if (n >= scores.N) return;
  const C low = static_cast<C>(band.low), high = static_cast<C>(band.high);
  const BandRule<C> rule{band.ids, low, high, band.unit, band.repel, band.show_infinite};
  const double sum = sum_band(scores, rule, n, band.mask ? band.mask + n * band.words : nullptr);
  if (lane() != 0) return;
  static_cast<C*>(band.row)[n] = static_cast<C>(sum);
  static_cast<C*>(band.low_of_row)[n] = low;
  static_cast<C*>(band.high_of_row)[n] = high;
  static_cast<C*>(band.norm)[n] = 1;
}

// The weights of row n, which are there for all after this.
template <typename C>
__device__ void fill_weights(const StoredPull& pull, const Numbers<C>& grad, int n, int N,
                             const Shared<C>& weights) {
  const C* distance = static_cast<const C*>(pull.distance);
  for (int m = static_cast<int>(threadIdx.x); m < N; m += kRowThreads) {
    C weight = static_cast<C>(pull.sign) * (grad[n] + grad[m]);
    if (distance) {
      const C own = distance[static_cast<int64_t>(n) * N + m];
      weight = own == 0 ? C(0) : weight / own;
    }
    weights.write(m, weight);
  }
  __syncthreads();
}

// The sum over pairs inside of their weights times y[m], or own - y[m], of columns [d, d + 4). Of a
// row outside nothing shows, not even that it is infinite; of one inside, even under weight 0.
template <typename C>
__device__ __forceinline__ Four<C> pulled(const StoredPull& pull, const Rows<C>& y, int n,
                                          int64_t d, const Four<C>& own, const Shared<C>& weights) {
  const int N = static_cast<int>(y.count);
  Four<C> sum = {};
  for (int from = 0; from < N; from += 32) {
    const uint32_t word = pull.mask[n * pull.words + from / 32];
    if (word == 0) continue;
#pragma unroll 4
    for (int bit = 0; bit < window(N - from, 32); ++bit) {
      const bool inside = word >> bit & 1;
      const C weight = inside ? weights.read(from + bit) : C(0);
      Four<C> other = {};
      if (inside) other = *reinterpret_cast<const Four<C>*>(y.data + (from + bit) * y.stride + d);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sum.v[e] += weight * (pull.distance && inside ? own.v[e] - other.v[e] : other.v[e]);
    }
  }
  return sum;
}

template <typename C>
__global__ void __launch_bounds__(kRowThreads, 4)
    stored_pull_kernel(StoredPull pull, Numbers<C> grad, Rows<C> y, int64_t D, int64_t first) {
  wait_for_launch_before();
  const int n = static_cast<int>(first + blockIdx.x);
  const auto weights = Shared<C>::template all<kMostRows>();
  fill_weights(pull, grad, n, static_cast<int>(y.count), weights);
  C* const out = static_cast<C*>(pull.out) + n * D;
  const C* const here = y.data + n * y.stride;
  C along = 0;
  for (int64_t d = 4 * threadIdx.x; d < D; d += 4 * kRowThreads) {
    const auto own = *reinterpret_cast<const Four<C>*>(here + d);
    Four<C> sum = pulled(pull, y, n, d, own, weights);
    // Read here: kept over the loops, it is one register too many on sm_100.
    const C shown = pull.shown ? 0 * static_cast<const C*>(pull.shown)[n] : C(0);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.v[e] += shown, along += sum.v[e] * own.v[e];
    *reinterpret_cast<Four<C>*>(out + d) = sum;
  }
  if (!pull.length) return;
  // Along itself a unit vector does not move.
  __syncthreads();
  along = sum_of_warps(weights, along, kRowWarps);
  const C length = static_cast<const C*>(pull.length)[n];
  if (length <= C(kSmallestLength)) along = 0;
  for (int64_t d = 4 * threadIdx.x; d < D; d += 4 * kRowThreads)
#pragma unroll
    for (int e = 0; e < 4; ++e) out[d + e] = (out[d + e] - along * here[d + e]) / divisor(length);
}

}  // namespace itm::cuda
