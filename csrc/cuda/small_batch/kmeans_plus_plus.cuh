#pragma once
// k-means++ of a small batch. A block draws all start centroids of its problem, from the squared
// distances of all pairs of rows, which take one launch and are shared by all problems, one per
// anchor. A thread keeps the distances of its own rows in registers, and the block synchronises
// once per centroid.

#include "cuda/small_batch/kmeans_plus_plus.h"
#include "cuda/small_batch/score_reductions.cuh"

namespace itm::cuda {

// The row of the largest distance / draw, and the sum of all distances.
template <typename C>
struct Farthest {
  Hardest<C> row;
  Sum<C> all;

  __device__ __forceinline__ void merge(const Farthest& other) {
    row.merge(other.row);
    all.merge(other.all);
  }
  __device__ __forceinline__ Farthest from_lane(int lanes) const {
    return {row.from_lane(lanes), all.from_lane(lanes)};
  }
};

// Called by the block; each thread has several loads in flight.
template <typename T>
__device__ void copy_row(const T* from, int64_t stride, int64_t D, Wide<T>* to) {
  for (int64_t first = threadIdx.x; first < D; first += kReductionThreads * kAtOnce) {
    T value[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t d = first + k * kReductionThreads;
      value[k] = from[(d < D ? d : D - 1) * stride];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kReductionThreads < D) to[first + k * kReductionThreads] = widen(value[k]);
  }
}

// Chooses rows one after another, by the block, and calls take(c, row) for each. A thread owns rows
// threadIdx.x, threadIdx.x + kThreads, ...; squares(chosen, row, to) reads their squared distances
// from a chosen row. Null draws are 1.
template <int kThreads, typename C, typename Squares, typename Take>
__device__ __forceinline__ void choose_rows(const Shared<Farthest<C>>& shared, int M,
                                            int64_t clusters, const bool* member,
                                            const float* draws, Squares&& squares, Take&& take) {
  constexpr int kOwn = static_cast<int>(kMostRows) / kThreads, kWarps = kThreads / 32;
  static_assert(kMostRows == kThreads * kOwn);
  const int thread = static_cast<int>(threadIdx.x);
  int row[kOwn], first = 0, chosen = 0;
  bool inside[kOwn];
  C nearest[kOwn];
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    row[k] = within(thread + k * kThreads, M);
    inside[k] = !member || member[row[k]];
    nearest[k] = inside[k];
  }
  for (int64_t c = 0; c < clusters; ++c) {
    float draw[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) draw[k] = draws ? draws[c * M + row[k]] : 1.0f;
    if (c > 0) {
      C own[kOwn];
      squares(chosen, row, own);
      // A row outside keeps 0; NaN persists.
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        if (inside[k] && (c == 1 || own[k] < nearest[k] || own[k] != own[k])) nearest[k] = own[k];
    }
    Farthest<C> state;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const C far = nearest[k] / draw[k];
      if (thread + k * kThreads >= M) continue;
      state.row.add(far, row[k]);
      state.all.sum += nearest[k];
    }
    merge_lanes<16, 1>(state);
    // Two slots in turn: a thread that reads one has passed a barrier since it was written, and the
    // slot is written again only after the next barrier.
    const int place = static_cast<int>(c % 2) * kWarps;
    if (lane() == 0) shared.write(place + warp(), state);
    __syncthreads();
    state = shared.read(place + lane() % kWarps);
    merge_lanes<kWarps / 2, 1>(state);
    chosen = c > 0 && !(state.all.sum > 0) ? first : state.row.index;
    if (c == 0) first = chosen;
    take(c, chosen);
  }
}

template <typename T>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    kmeans_plus_plus_kernel(int64_t first_block, AnyRows x, int64_t D, Scores<Wide<T>> squares,
                            KMeansPlusPlus to) {
  wait_for_launch_before();
  using C = Wide<T>;
  const auto shared = Shared<Farthest<C>>::template all<2 * kAnchors>();
  const int64_t problem = first_block + blockIdx.x;
  C* const centroids = static_cast<C*>(to.centroids) + problem * to.clusters * D;
  const auto read = [&](int chosen, const int (&row)[kAtOnce], C(&own)[kAtOnce]) {
    int at[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) at[k] = chosen * squares.M + row[k];
    squares.read(at, own);
  };
  const auto take = [&](int64_t c, int row) {
    copy_row(static_cast<const T*>(x.data) + row * x.stride, x.column_stride, D, centroids + c * D);
  };
  choose_rows<kReductionThreads, C>(shared, squares.M, to.clusters,
                                    to.member ? to.member + problem * squares.M : nullptr, to.draws,
                                    read, take);
}

}  // namespace itm::cuda
