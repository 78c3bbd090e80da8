#pragma once
// Helpers of k-means and synthesis: a block belongs to one problem, and each of its warps processes
// clusters or rows. Every cluster's members are listed in a fixed order, so sums are reproducible.

#include "cuda/distances/tile.cuh"
#include "cuda/warp.cuh"

namespace itm::cuda {

// With as many problems as a small batch has anchors, each block has a multiprocessor to itself: 16
// warps keep enough loads in flight to use one multiprocessor's L2 bandwidth.
constexpr int kClusterWarps = 16, kClusterThreads = 32 * kClusterWarps;

// Sums kCount values over the warp; lane l gets the sum of value l / (32 / kCount). All values are
// added in the same tree. Recursive, because a loop of halves leaves the array in memory.
template <typename C, int kCount, int kLanes = 16>
__device__ __forceinline__ C scattered_sum(const C (&value)[kCount]) {
  if constexpr (kLanes == 0) {
    return value[0];
  } else if constexpr (kCount == 1) {
    const C sum[1] = {value[0] + __shfl_xor_sync(~0u, value[0], kLanes)};
    return scattered_sum<C, 1, kLanes / 2>(sum);
  } else {
    const bool upper = lane() & kLanes;
    C sum[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const C mine = upper ? value[i + kCount / 2] : value[i];
      const C theirs = upper ? value[i] : value[i + kCount / 2];
      sum[i] = mine + __shfl_xor_sync(~0u, theirs, kLanes);
    }
    return scattered_sum<C, kCount / 2, kLanes / 2>(sum);
  }
}

template <typename T>
__device__ __forceinline__ Four<Wide<T>> load_four(const T* from) {
  const auto as_is = *reinterpret_cast<const Four<T>*>(from);
  Four<Wide<T>> wide;
#pragma unroll
  for (int e = 0; e < 4; ++e) wide.v[e] = widen(as_is.v[e]);
  return wide;
}

// The members of every cluster of one problem, in increasing order: cluster k has order[i] for i in
// [span[2 k], span[2 k + 1]).
struct ClusterMembers {
  int32_t *order, *span;  // [M], [K, 2]

  __device__ ClusterMembers of_problem(int64_t p, int64_t M, int64_t K) const {
    return {order + p * M, span + 2 * p * K};
  }

  // Fills the lists, which are complete after a barrier. Assignments outside [0, K) are ignored.
  __device__ void fill(const int64_t* cluster, int64_t M, int64_t K) const {
    for (int64_t k = warp(); k < K; k += kClusterWarps) {
      int begin = 0;
      for (int64_t first = 0; first < M; first += 32) {
        const int64_t own = first + lane() < M ? cluster[first + lane()] : -1;
        begin += __popc(__ballot_sync(~0u, own >= 0 && own < k));
      }
      int end = begin;
      for (int64_t first = 0; first < M; first += 32) {
        const int64_t m = first + lane();
        const bool own = m < M && cluster[m] == k;
        const unsigned all = __ballot_sync(~0u, own);
        if (own) order[end + __popc(all & ((1u << lane()) - 1))] = static_cast<int32_t>(m);
        end += __popc(all);
      }
      if (lane() == 0) span[2 * k] = begin, span[2 * k + 1] = end;
    }
  }
};

constexpr double kSmallest = 1e-8;  // of a norm, as in torch.nn.functional.cosine_similarity

// The divisor of a cosine; propagates NaN. A row of norm 0 has no direction: dividing by infinity
// makes its cosine and its gradient 0.
template <typename C>
__device__ __forceinline__ C at_least(C norm) {
  if (norm == 0) return C(INFINITY);
  return norm < C(kSmallest) ? C(kSmallest) : norm;
}

}  // namespace itm::cuda
