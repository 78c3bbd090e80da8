#pragma once
// The steps of InfoCMR before its anchors: unit rows, and the clusterings and kernel matrices of
// both sides as two problems of one launch. Each clustering has one block, and each kernel matrix
// another.

#include "cuda/small_batch/info_cmr.h"
#include "cuda/small_batch/kam_solve.cuh"
#include "cuda/small_batch/kmeans.cuh"
#include "cuda/small_batch/kmeans_plus_plus.cuh"
#include "cuda/small_batch/unit_rows.cuh"

namespace itm::cuda {

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    cmr_unit_rows_kernel(CmrUnitRows in, RowSplit split, int64_t first_block) {
  wait_for_launch_before();
  const auto scratch = Shared<double>::all<kRowWarps>();
  const int64_t n = split.row(first_block), end = split.end(n);
  // Indices into an array that is a kernel argument must be constants.
  AnyRows of = in.of[0];
  int64_t row = n;
#pragma unroll
  for (int i = 1; i < 3; ++i)
    if (row >= of.rows) row -= of.rows, of = in.of[i];
  const T* const from = static_cast<const T*>(of.data) + row * of.stride;
  const auto value = [&](int64_t d) {
    return d < in.D ? static_cast<double>(widen(from[d * of.column_stride])) : 0.0;
  };
  double square = 0;
#pragma unroll 4
  for (int64_t d = split.start(); d < end; d += split.step()) square += value(d) * value(d);
  const double norm = root(sum_warps(scratch, square, split.warps));
  if (n < split.rows && split.start() == 0) in.norm[n] = norm;
  const double inverse = 1 / divisor(norm);
#pragma unroll 4
  for (int64_t d = split.start(); d < end; d += split.step())
    in.unit[n * in.padded + d] = value(d) * inverse;
}

// x_i - x_j|^2 of rows, from their Gram matrix. Equal rows have equal dot products, so their
// distance is exactly 0.
struct GramSquares {
  const double* gram;
  int64_t M;
  __device__ __forceinline__ double operator()(int64_t i, int64_t j) const {
    const double square = gram[i * M + i] + gram[j * M + j] - 2 * gram[i * M + j];
    return square <= 0 ? 0 : square;  // propagates NaN
  }
};

// A Gram matrix whose parts have been added.
__device__ __forceinline__ const double* gram_of(const CmrSide& side) {
  return side.gram.parts > 1 ? side.added : static_cast<const double*>(side.gram.data);
}

__device__ __forceinline__ void add_gram(const CmrSide& side) {
  const Scores<double> gram(side.gram);
  const int size = gram.N * gram.M;
  for (int first = static_cast<int>(threadIdx.x); first < size;
       first += kClusterThreads * kAtOnce) {
    int at[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) at[k] = within(first + k * kClusterThreads, size);
    double sum[kAtOnce];
    gram.read(at, sum);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kClusterThreads < size) side.added[at[k]] = sum[k];
  }
}

// k-means++, k-means and the lists of members, for the side of this block.
__global__ void __launch_bounds__(kClusterThreads, 1)
    cmr_cluster_kernel(CmrSide image, CmrSide text, int64_t K, int64_t iterations, int64_t first) {
  wait_for_launch_before();
  const auto shared = Shared<Farthest<double>>::all<2 * kClusterWarps>();
  const CmrSide side = first + blockIdx.x == 0 ? image : text;
  const int64_t M = side.rows;
  if (side.gram.parts > 1) add_gram(side);
  __syncthreads();
  const GramSquares squares{gram_of(side), M};
  choose_rows<kClusterThreads, double>(
      shared, static_cast<int>(M), K, nullptr, side.draws,
      [&](int chosen, const auto& row, auto& own) {
#pragma unroll
        for (int k = 0; k < static_cast<int>(sizeof(own) / sizeof(*own)); ++k)
          own[k] = squares(chosen, row[k]);
      },
      [&](int64_t k, int row) {  // dot products with a centroid that is a row
        for (int64_t m = threadIdx.x; m < M; m += kClusterThreads)
          side.score[k * M + m] = squares.gram[row * M + m];
        if (threadIdx.x == 0) side.half_square[k] = squares.gram[row * M + row] / 2;
      });
  __syncthreads();
  const ClusterMembers lists{side.order, side.span};
  const KMeans<double> problem{{nullptr, M, 0, 0},
                               0,
                               K,
                               iterations,
                               squares.gram,
                               nullptr,
                               nullptr,
                               side.assignment,
                               side.score,
                               side.half_square,
                               lists,
                               {side.order + M, side.span + 2 * K}};
  iterate(problem);
  __syncthreads();
  lists.fill(side.assignment, M, K);
}

// Inverts the kernel matrices of the clusters of images, then of texts.
__global__ void __launch_bounds__(kSystemThreads, 2)
    cmr_kam_solve_kernel(CmrSide image, CmrSide text, int64_t K, double scale, double ridge,
                         int64_t first) {
  wait_for_launch_before();
  const int64_t block = first + blockIdx.x, k = block % K;
  const CmrSide side = block < K ? image : text;
  const int64_t M = side.rows;
  const int begin = side.span[2 * k], size = side.span[2 * k + 1] - begin;
  invert_system(Shared<double>::all<SystemInShared::kNumbers>(), side.order + begin, size, M, scale,
                ridge, GramSquares{gram_of(side), M}, side.inverse + begin * M + begin,
                side.sweep + begin);
}

}  // namespace itm::cuda
