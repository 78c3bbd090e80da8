#pragma once
// k-means++ of a small batch: a warp draws all start centroids of its problem, from the squared
// distances of all pairs of rows. Those take one launch, and problems, one per anchor, share them.

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

template <typename T>
__global__ void __launch_bounds__(kFoldThreads, 4)
    kmeans_plus_plus_kernel(int64_t first_block, AnyRows x, int64_t D, Scores<Wide<T>> squares,
                            Drawing to) {
  using C = Wide<T>;
  const int64_t problem = (first_block + blockIdx.x) * kAnchors + warp();
  if (problem >= to.problems) return;
  const int M = squares.M;
  const bool* const member = to.member ? to.member + problem * M : nullptr;
  C* const distance = static_cast<C*>(to.distance) + problem * M;
  C* centroid = static_cast<C*>(to.centroids) + problem * to.clusters * D;
  int first = 0, chosen = 0;
  for (int64_t k = 0; k < to.clusters; ++k, centroid += D) {
    const float* const draw = to.draws + k * M;
    const auto found = fold_row<Farthest<C>>(M, [&](Farthest<C>& state, int m) {
      const bool inside = !member || member[m];
      C nearest = inside;
      if (k > 0) {
        // A lane comes back to its own rows. NaN, once there, stays.
        const C own = inside ? squares.at(chosen, m) : C(0), before = k > 1 ? distance[m] : own;
        nearest = own < before || own != own ? own : before;
        distance[m] = nearest;
      }
      state.row.see(nearest / draw[m], m);
      state.all.sum += nearest;
    });
    chosen = k > 0 && !(found.all.sum > 0) ? first : found.row.index;
    if (k == 0) first = chosen;
    const T* const row = static_cast<const T*>(x.data) + chosen * x.stride;
    for (int64_t d = lane(); d < D; d += 32) centroid[d] = widen(row[d * x.column_stride]);
  }
}

}  // namespace itm::cuda
