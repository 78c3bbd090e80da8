#pragma once
// The kernel associative memory: (K + ridge I)^-1 of a cluster, K_ij = e^(-|x_i - x_j|^2 / 2
// sigma^2), in fp64, because near-duplicates leave a condition of 1 / ridge. A block a cluster, by
// Gauss-Jordan elimination in place; positive definite matrices need no other pivots.

#include "cuda/clusters.cuh"

namespace itm::cuda {

struct Systems {
  const double* distance;   // [M, M]
  double *inverse, *sweep;  // [P, M, M], [P, 2, M]
  int64_t M, K;
  double scale, ridge;  // 1 / sigma^2
  Lists lists;
};

// Pivots of a matrix with 1 on its diagonal that are nothing but rounding: with ridge 0, duplicates
// leave 1e-16 |x|^2 / sigma^2 or 0, as it happens.
constexpr double kSmallestPivot = 1e-13;

// Matrices of so many rows are made in shared memory: 8 members of 128 are 16 on average.
constexpr int kSmallSystem = 64, kSystemThreads = 256;

struct SystemInShared {
  static constexpr int kNumbers = kSmallSystem * (kSmallSystem + 2);
  Shared<double> numbers;
  int size;
  __device__ double read(int i, int j) const { return numbers.read(i * size + j); }
  __device__ void write(int i, int j, double value) const { numbers.write(i * size + j, value); }
  // A column before a step, and its row, divided by the pivot.
  __device__ double kept(int which, int i) const {
    return numbers.read((kSmallSystem + which) * kSmallSystem + i);
  }
  __device__ void keep(int which, int i, double value) const {
    numbers.write((kSmallSystem + which) * kSmallSystem + i, value);
  }
};

struct SystemInGlobal {
  double *numbers, *sweep;
  int64_t stride;
  int size;
  __device__ double read(int i, int j) const { return numbers[i * stride + j]; }
  __device__ void write(int i, int j, double value) const { numbers[i * stride + j] = value; }
  __device__ double kept(int which, int i) const { return sweep[which * stride + i]; }
  __device__ void keep(int which, int i, double value) const { sweep[which * stride + i] = value; }
};

// Calls visit(i, j) for every entry, of which a thread has its own.
template <typename Visit>
__device__ __forceinline__ void for_each_entry(int size, Visit&& visit) {
  constexpr int kSide = 16;
  static_assert(kSide * kSide == kSystemThreads);
  for (int i = static_cast<int>(threadIdx.x) / kSide; i < size; i += kSide)
    for (int j = static_cast<int>(threadIdx.x) % kSide; j < size; j += kSide) visit(i, j);
}

// Leaves the inverse, or NaN if the matrix is not positive definite.
template <typename System>
__device__ void invert(const System& a) {
  bool bad = false;
  for (int p = 0; p < a.size; ++p) {
    __syncthreads();
    const double pivot = a.read(p, p);
    bad |= !(pivot > kSmallestPivot);
    for (int i = static_cast<int>(threadIdx.x); i < a.size; i += kSystemThreads) {
      a.keep(0, i, a.read(i, p));
      a.keep(1, i, a.read(p, i) / pivot);
    }
    __syncthreads();
    for_each_entry(a.size, [&](int i, int j) {
      const double row = a.kept(1, j);
      if (i == p)
        a.write(i, j, j == p ? 1 / pivot : row);
      else if (j == p)
        a.write(i, j, -a.kept(0, i) / pivot);
      else
        a.write(i, j, a.read(i, j) - a.kept(0, i) * row);
    });
  }
  if (bad) for_each_entry(a.size, [&](int i, int j) { a.write(i, j, NAN); });
}

__global__ void __launch_bounds__(kSystemThreads, 2) systems_kernel(Systems all, int64_t first) {
  wait_for_launch_before();
  const int64_t p = (first + blockIdx.x) / all.K, k = (first + blockIdx.x) % all.K;
  const Lists lists = all.lists.of_problem(p, all.M, all.K);
  const int begin = lists.span[2 * k], size = lists.span[2 * k + 1] - begin;
  double* to = all.inverse + (p * all.M + begin) * all.M + begin;
  const auto entry = [&](int i, int j) {
    if (i == j) return 1 + all.ridge;
    const int64_t row = lists.order[begin + i], column = lists.order[begin + j];
    return exponential(-all.distance[row * all.M + column] * all.scale / 2);
  };
  const auto shared = Shared<double>::all<SystemInShared::kNumbers>();
  if (size <= kSmallSystem) {
    const SystemInShared system{shared, size};
    for_each_entry(size, [&](int i, int j) { system.write(i, j, entry(i, j)); });
    invert(system);
    for_each_entry(size, [&](int i, int j) { to[i * all.M + j] = system.read(i, j); });
  } else {
    const SystemInGlobal system{to, all.sweep + 2 * p * all.M + begin, all.M, size};
    for_each_entry(size, [&](int i, int j) { system.write(i, j, entry(i, j)); });
    invert(system);
  }
}

}  // namespace itm::cuda
