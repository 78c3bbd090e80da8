#pragma once
// k-means, all iterations of a problem in one block: its centroids stay in shared memory where they
// fit, rows pass by from L2, once to be assigned and once to be added. A warp holds the products of
// 4 rows with 8 centroids: one read of 16 bytes of a centroid feeds 16 multiplications.

#include "cuda/clusters.cuh"

namespace itm::cuda {

// One problem after another; a block takes its own by of_problem.
template <typename T>
struct KMeans {
  using C = Wide<T>;
  Rows<T> x;
  int64_t D, K, iterations;  // D in fours
  const bool* member;        // [B, M] or null
  C* centroids;              // [B, K, D]: where to start, and the result
  int64_t* assignment;       // [B, M]
  C* half_square;            // [B, K] |c|^2 / 2
  Lists lists;               // room for those of B problems

  __device__ KMeans of_problem(int64_t b) const {
    KMeans own = *this;
    if (member) own.member += b * x.count;
    own.centroids += b * K * D;
    own.assignment += b * x.count;
    own.half_square += b * K;
    own.lists = lists.of_problem(b, x.count, K);
    return own;
  }
};

template <typename C>
struct CentroidsInShared {
  static constexpr int kRows = std::is_same_v<C, double> ? 1 : 4;
  static constexpr int kMost = (48 << 10) / sizeof(C);
  Shared<C> numbers;
  int D;

  __device__ __forceinline__ explicit CentroidsInShared(C*, int64_t D)
      : numbers(Shared<C>::template all<kMost>()), D(static_cast<int>(D)) {}
  __device__ __forceinline__ Four<C> read(int64_t k, int64_t d) const {
    return numbers.template read<Four<C>>(static_cast<int>(k) * D + static_cast<int>(d));
  }
  __device__ __forceinline__ void write(int64_t k, int64_t d, const Four<C>& value) const {
    numbers.write(static_cast<int>(k) * D + static_cast<int>(d), value);
  }
};

template <typename C>
struct CentroidsInGlobal {
  // What is read from afar is in registers earlier: 4 rows are 12 bytes of spills on sm_90.
  static constexpr int kRows = std::is_same_v<C, double> ? 1 : 2;
  C* numbers;
  int64_t D;

  __device__ __forceinline__ explicit CentroidsInGlobal(C* from, int64_t D) : numbers(from), D(D) {}
  __device__ __forceinline__ Four<C> read(int64_t k, int64_t d) const {
    return *reinterpret_cast<const Four<C>*>(numbers + k * D + d);
  }
  __device__ __forceinline__ void write(int64_t k, int64_t d, const Four<C>& value) const {
    *reinterpret_cast<Four<C>*>(numbers + k * D + d) = value;
  }
};

// Is a centroid nearer, by x.c - |c|^2 / 2, than another? NaN is nearest, as for torch's argmin.
template <typename C>
__device__ __forceinline__ bool nearer(C score, int k, C other, int other_k) {
  const bool nan = score != score, other_nan = other != other;
  if (nan != other_nan) return nan;
  return score > other || ((nan || score == other) && k < other_k);
}

// The products of kRows rows from m on with 8 centroids from k on, spread over the warp.
template <int kRows, typename T, typename Centroids>
__device__ __forceinline__ Wide<T> products(const KMeans<T>& in, const Centroids& centroids,
                                            int64_t m, int64_t k) {
  using C = Wide<T>;
  C sum[kRows * 8] = {};
  for (int64_t d = 4 * lane(); d < in.D; d += 128) {
    Four<C> x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      x[r] = load_four(in.x.data + (m + r < in.x.count ? m + r : m) * in.x.stride + d);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const Four<C> y = centroids.read(k + c < in.K ? k + c : k, d);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[r * 8 + c] += x[r].v[e] * y.v[e];
    }
  }
  return scattered_sum(sum);
}

// Sends every member to its nearest centroid; returns whether this thread has seen one move.
template <typename T, typename Centroids>
__device__ bool assign(const KMeans<T>& in, const Centroids& centroids, bool first) {
  using C = Wide<T>;
  constexpr int kRows = Centroids::kRows, kEach = 4 / kRows;  // lanes of a product
  const int row = lane() / (8 * kEach), column = lane() / kEach % 8;
  bool moved = false;
  for (int64_t m = warp() * kRows; m < in.x.count; m += kClusterWarps * kRows) {
    C best = -INFINITY;
    int nearest = 0x7fffffff;
    for (int64_t from = 0; from < in.K; from += 8) {
      C score = products<kRows>(in, centroids, m, from);
      int k = static_cast<int>(from) + column;
      score = k < in.K ? score - in.half_square[k] : -C(INFINITY);
#pragma unroll
      for (int lanes = kEach; lanes < 8 * kEach; lanes *= 2) {
        const C other = __shfl_xor_sync(~0u, score, lanes);
        const int other_k = __shfl_xor_sync(~0u, k, lanes);
        if (nearer(other, other_k, score, k)) score = other, k = other_k;
      }
      if (nearer(score, k, best, nearest)) best = score, nearest = k;
    }
    if (lane() % (8 * kEach) != 0 || m + row >= in.x.count) continue;
    const int64_t found = !in.member || in.member[m + row] ? nearest : -1;
    moved |= first || in.assignment[m + row] != found;
    in.assignment[m + row] = found;
  }
  return moved;
}

// Moves every centroid to the mean of its members; without any it stays.
template <typename T, typename Centroids>
__device__ void move(const KMeans<T>& in, const Centroids& centroids) {
  using C = Wide<T>;
  const int64_t fours = in.D / 4;
  for (int64_t i = threadIdx.x; i < in.K * fours; i += kClusterThreads) {
    const int64_t k = i / fours, d = i % fours * 4;
    const int begin = in.lists.span[2 * k], end = in.lists.span[2 * k + 1];
    if (begin == end) continue;
    Four<C> sum = {};
#pragma unroll 4
    for (int m = begin; m < end; ++m) {
      const Four<C> x = load_four(in.x.data + in.lists.order[m] * in.x.stride + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum.v[e] += x.v[e];
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.v[e] /= static_cast<C>(end - begin);
    centroids.write(k, d, sum);
  }
}

template <typename T, typename Centroids>
__device__ void measure(const KMeans<T>& in, const Centroids& centroids) {
  using C = Wide<T>;
  for (int64_t k = warp(); k < in.K; k += kClusterWarps) {
    C square = 0;
    for (int64_t d = 4 * lane(); d < in.D; d += 128) {
      const Four<C> c = centroids.read(k, d);
#pragma unroll
      for (int e = 0; e < 4; ++e) square += c.v[e] * c.v[e];
    }
    square = warp_sum(square);
    if (lane() == 0) in.half_square[k] = square / 2;
  }
}

template <typename T, typename Centroids>
__global__ void __launch_bounds__(kClusterThreads) kmeans_kernel(KMeans<T> all, int64_t first) {
  constexpr bool kShared = std::is_same_v<Centroids, CentroidsInShared<Wide<T>>>;
  const KMeans<T> in = all.of_problem(first + blockIdx.x);
  const Centroids centroids(in.centroids, in.D);
  const int64_t size = in.K * in.D;
  if constexpr (kShared)
    for (int64_t i = 4 * threadIdx.x; i < size; i += 4 * kClusterThreads)
      centroids.write(0, i, load_four(in.centroids + i));
  __syncthreads();
  measure(in, centroids);
  __syncthreads();
  bool moved = assign(in, centroids, true);
  for (int64_t i = 0; i < in.iterations; ++i) {
    // Where nobody moves, nothing will: the same means again, for all iterations that are left.
    if (!__syncthreads_or(moved)) break;
    in.lists.fill(in.assignment, in.x.count, in.K);
    __syncthreads();
    move(in, centroids);
    __syncthreads();
    measure(in, centroids);
    __syncthreads();
    moved = assign(in, centroids, false);
  }
  if constexpr (kShared)
    for (int64_t i = 4 * threadIdx.x; i < size; i += 4 * kClusterThreads)
      *reinterpret_cast<Four<Wide<T>>*>(in.centroids + i) = centroids.read(0, i);
}

}  // namespace itm::cuda
