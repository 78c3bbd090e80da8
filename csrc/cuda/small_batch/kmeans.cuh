#pragma once
// k-means of a small batch, with all iterations of a problem in one block. A centroid is a mean of
// rows, so its dot product with a row is the mean of that row's dot products with them. The dot
// products of all rows are given, for all problems: an iteration adds M x M values, where explicit
// centroids would cost it 2 M K D operations and two reads of all rows. The rows themselves are
// read only at the start, to be multiplied with the first centroids, and at the end, to form the
// last.

#include "cuda/small_batch/cluster_members.cuh"

namespace itm::cuda {

// Rows of a cluster that are summed separately: long chains of additions lose digits.
constexpr int kChain = 32;

// Operands of all problems; of_problem selects those of one block.
template <typename T>
struct KMeans {
  using C = Wide<T>;
  Rows<T> x;
  int64_t D, K, iterations;        // D padded
  const C* product;                // [M, M] of all rows
  const bool* member;              // [B, M] or null
  C* centroids;                    // [B, K, D]: the start, and the result
  int64_t* assignment;             // [B, M]
  C *score, *half_square;          // workspace: x.c [B, K, M], |c|^2 / 2 [B, K]
  ClusterMembers lists, previous;  // workspace of B problems, for two iterations

  __device__ KMeans of_problem(int64_t b) const {
    KMeans own = *this;
    if (member) own.member += b * x.count;
    own.centroids += b * K * D;
    own.assignment += b * x.count;
    own.score += b * K * x.count;
    own.half_square += b * K;
    own.lists = lists.of_problem(b, x.count, K);
    own.previous = previous.of_problem(b, x.count, K);
    return own;
  }
};

// Returns whether a centroid is nearer, by x.c - |c|^2 / 2, than another. NaN is nearest, as in
// torch.argmin.
template <typename C>
__device__ __forceinline__ bool nearer(C score, int k, C other, int other_k) {
  const bool nan = score != score, other_nan = other != other;
  if (nan != other_nan) return nan;
  return score > other || ((nan || score == other) && k < other_k);
}

// The dot products of two rows (one in fp64), m and m + 1, with 8 centroids from k on, distributed
// over the warp.
template <int kRows, typename T>
__device__ __forceinline__ Wide<T> centroid_products(const KMeans<T>& in, int64_t m, int64_t k) {
  using C = Wide<T>;
  C sum[kRows * 8] = {};
  for (int64_t d = 4 * lane(); d < in.D; d += 128) {
    Four<C> x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      x[r] = load_four(in.x.data + (m + r < in.x.count ? m + r : m) * in.x.stride + d);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const Four<C> y = load_four(in.centroids + (k + c < in.K ? k + c : k) * in.D + d);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[r * 8 + c] += x[r].v[e] * y.v[e];
    }
  }
  return scattered_sum(sum);
}

// The dot products of the first centroids with all rows, and half their squared norms.
template <typename T>
__device__ __forceinline__ void compare(const KMeans<T>& in) {
  using C = Wide<T>;
  constexpr int kRows = std::is_same_v<C, double> ? 1 : 2, kEach = 4 / kRows;  // lanes per product
  const int row = lane() / (8 * kEach), column = lane() / kEach % 8;
  for (int64_t m = warp() * kRows; m < in.x.count; m += kClusterWarps * kRows)
    for (int64_t first = 0; first < in.K; first += 8) {
      const C product = centroid_products<kRows>(in, m, first);
      if (lane() % kEach == 0 && m + row < in.x.count && first + column < in.K)
        in.score[(first + column) * in.x.count + m + row] = product;
    }
  for (int64_t k = warp(); k < in.K; k += kClusterWarps) {
    C square = 0;
    for (int64_t d = 4 * lane(); d < in.D; d += 128) {
      const Four<C> c = load_four(in.centroids + k * in.D + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) square += c.v[e] * c.v[e];
    }
    square = warp_sum(square);
    if (lane() == 0) in.half_square[k] = square / 2;
  }
}

// Assigns every member to its nearest centroid; returns whether one of this thread's has moved.
template <typename T>
__device__ __forceinline__ bool assign(const KMeans<T>& in, bool first) {
  using C = Wide<T>;
  bool moved = false;
  for (int64_t m = threadIdx.x; m < in.x.count; m += kClusterThreads) {
    C best = in.score[m] - in.half_square[0];
    int nearest = 0;
    for (int k = 1; k < in.K; ++k) {
      const C score = in.score[k * in.x.count + m] - in.half_square[k];
      if (nearer(score, k, best, nearest)) best = score, nearest = k;
    }
    const int64_t found = !in.member || in.member[m] ? nearest : -1;
    moved |= first || in.assignment[m] != found;
    in.assignment[m] = found;
  }
  return moved;
}

// The dot products of the listed rows' means with all rows. A warp processes a cluster and 32 rows,
// which are adjacent in memory. A centroid without members keeps its products.
template <typename T>
__device__ __forceinline__ void add_products(const KMeans<T>& in, const ClusterMembers& lists) {
  using C = Wide<T>;
  const int64_t groups = ceil_div(in.x.count, 32);
  for (int64_t task = warp(); task < in.K * groups; task += kClusterWarps) {
    const int64_t k = task / groups, m = task % groups * 32 + lane();
    const int begin = lists.span[2 * k], end = lists.span[2 * k + 1];
    if (begin == end || m >= in.x.count) continue;
    C sum = 0;
    for (int first = begin; first < end; first += kChain) {
      const int last = first + kChain < end ? first + kChain : end;
      C part = 0;
#pragma unroll 4
      for (int i = first; i < last; ++i) part += in.product[lists.order[i] * in.x.count + m];
      sum += part;
    }
    in.score[k * in.x.count + m] = sum / static_cast<C>(end - begin);
  }
}

// c|^2 is the mean of x.c over the rows whose mean is c.
template <typename T>
__device__ __forceinline__ void add_squares(const KMeans<T>& in, const ClusterMembers& lists) {
  using C = Wide<T>;
  for (int64_t k = warp(); k < in.K; k += kClusterWarps) {
    const int begin = lists.span[2 * k], end = lists.span[2 * k + 1];
    if (begin == end) continue;
    C sum = 0;
    for (int i = begin + lane(); i < end; i += 32) sum += in.score[k * in.x.count + lists.order[i]];
    sum = warp_sum(sum);
    if (lane() == 0) in.half_square[k] = sum / static_cast<C>(2 * (end - begin));
  }
}

// Writes the means of listed rows, for clusters that have none in `unless`.
template <typename T>
__device__ __forceinline__ void write_means(const KMeans<T>& in, const ClusterMembers& lists,
                                            const ClusterMembers* unless) {
  using C = Wide<T>;
  const int64_t fours = in.D / 4;
  for (int64_t i = threadIdx.x; i < in.K * fours; i += kClusterThreads) {
    const int64_t k = i / fours, d = i % fours * 4;
    const int begin = lists.span[2 * k], end = lists.span[2 * k + 1];
    if (begin == end || (unless && unless->span[2 * k] != unless->span[2 * k + 1])) continue;
    Four<C> sum = {};
    for (int from = begin; from < end; from += kChain) {
      const int last = from + kChain < end ? from + kChain : end;
      Four<C> part = {};
#pragma unroll 4
      for (int m = from; m < last; ++m) {
        const Four<C> x = load_four(in.x.data + lists.order[m] * in.x.stride + d);
#pragma unroll
        for (int e = 0; e < 4; ++e) part.v[e] += x.v[e];
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) sum.v[e] += part.v[e];
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.v[e] /= static_cast<C>(end - begin);
    *reinterpret_cast<Four<C>*>(in.centroids + k * in.D + d) = sum;
  }
}

// All iterations, from the scores of the first centroids, which all threads can read. With D = 0
// the centroids themselves are not written.
template <typename T>
__device__ __forceinline__ void iterate(const KMeans<T>& in) {
  bool moved = assign(in, true);
  ClusterMembers lists = in.lists, before = in.previous;
  for (int64_t i = 0; i < in.iterations; ++i) {
    // If no member moves, all remaining iterations would give the same means.
    if (!__syncthreads_or(moved)) break;
    lists.fill(in.assignment, in.x.count, in.K);
    __syncthreads();
    // A cluster that has lost its last member keeps its centroid.
    if (i > 0) write_means(in, before, &lists);
    add_products(in, lists);
    __syncthreads();
    add_squares(in, lists);
    __syncthreads();
    moved = assign(in, false);
    const ClusterMembers done = lists;
    lists = before, before = done;
  }
  if (in.iterations > 0) write_means(in, before, nullptr);
}

template <typename T>
__global__ void __launch_bounds__(kClusterThreads, 1) kmeans_kernel(KMeans<T> all, int64_t first) {
  wait_for_launch_before();
  const KMeans<T> in = all.of_problem(first + blockIdx.x);
  compare(in);
  __syncthreads();
  iterate(in);
}

}  // namespace itm::cuda
