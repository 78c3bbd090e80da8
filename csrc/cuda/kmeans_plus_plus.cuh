#pragma once
// k-means++ of a small batch: a block draws all start centroids of its problem, from the squared
// distances of all pairs of rows. Those take one launch, and problems, one per anchor, share them.
// A thread keeps the distances of its own rows in registers, and the block meets once a centroid.

#include "cuda/pairs.cuh"

namespace itm::cuda {

// The row of the largest distance / draw, and the sum of all distances.
template <typename C>
struct Farthest {
  Hardest<C> row;
  Sum<C> all;

  __device__ __forceinline__ void join(const Farthest& other) {
    row.join(other.row);
    all.join(other.all);
  }
  __device__ __forceinline__ Farthest of_lane(int lanes) const {
    return {row.of_lane(lanes), all.of_lane(lanes)};
  }
};

// By the block; a thread has several numbers on their way.
template <typename T>
__device__ void copy_row(const T* from, int64_t stride, int64_t D, Wide<T>* to) {
  for (int64_t first = threadIdx.x; first < D; first += kFoldThreads * kAtOnce) {
    T value[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t d = first + k * kFoldThreads;
      value[k] = from[(d < D ? d : D - 1) * stride];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kFoldThreads < D) to[first + k * kFoldThreads] = widen(value[k]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kFoldThreads, kFoldBlocks)
    kmeans_plus_plus_kernel(int64_t first_block, AnyRows x, int64_t D, Scores<Wide<T>> squares,
                            Drawing to) {
  wait_for_launch_before();
  using C = Wide<T>;
  static_assert(kMostRows == kFoldThreads * kAtOnce);
  const auto shared = Shared<Farthest<C>>::template all<2 * kAnchors>();
  const int64_t problem = first_block + blockIdx.x;
  const int M = squares.M, thread = static_cast<int>(threadIdx.x);
  C* centroid = static_cast<C*>(to.centroids) + problem * to.clusters * D;
  const bool* const member = to.member ? to.member + problem * M : nullptr;
  int row[kAtOnce], first = 0, chosen = 0;
  bool inside[kAtOnce];
  C nearest[kAtOnce];
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    row[k] = within(thread + k * kFoldThreads, M);
    inside[k] = !member || member[row[k]];
    nearest[k] = inside[k];
  }
  for (int64_t c = 0; c < to.clusters; ++c, centroid += D) {
    float draw[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) draw[k] = to.draws[c * M + row[k]];
    if (c > 0) {
      int at[kAtOnce];
      C own[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) at[k] = chosen * M + row[k];
      squares.read(at, own);
      // A row outside stays at 0; NaN, once there, stays.
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (inside[k] && (c == 1 || own[k] < nearest[k] || own[k] != own[k])) nearest[k] = own[k];
    }
    Farthest<C> state;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const C far = nearest[k] / draw[k];
      if (thread + k * kFoldThreads >= M) continue;
      state.row.see(far, row[k]);
      state.all.sum += nearest[k];
    }
    join_lanes<16, 1>(state);
    // Two places in turn: who reads one has met all others since they wrote it.
    const int place = static_cast<int>(c % 2) * kAnchors;
    if (lane() == 0) shared.write(place + warp(), state);
    __syncthreads();
    state = shared.read(place + lane() % kAnchors);
    join_lanes<kAnchors / 2, 1>(state);
    chosen = c > 0 && !(state.all.sum > 0) ? first : state.row.index;
    if (c == 0) first = chosen;
    copy_row(static_cast<const T*>(x.data) + chosen * x.stride, x.column_stride, D, centroid);
  }
}

}  // namespace itm::cuda
