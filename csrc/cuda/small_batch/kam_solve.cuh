#pragma once
// The kernel associative memory: (K + ridge I)^-1 of a cluster, with K_ij = e^(-|x_i - x_j|^2 / 2
// sigma^2), in fp64, because near duplicates give a condition number of 1 / ridge. One block per
// cluster runs Gauss-Jordan elimination in place; positive definite matrices need no pivoting.

#include "cuda/small_batch/cluster_members.cuh"

namespace itm::cuda {

// Smaller pivots of a matrix with a unit diagonal are rounding errors: with ridge 0, duplicates
// leave 1e-16 |x|^2 / sigma^2 or 0, depending on rounding.
constexpr double kSmallestPivot = 1e-13;

// Matrices of up to 64 rows are inverted in shared memory: 8 clusters of 128 members have 16 on
// average.
constexpr int kSmallSystem = 64, kSystemThreads = 256;

struct SystemInShared {
  static constexpr int kNumbers = kSmallSystem * (kSmallSystem + 2);
  Shared<double> numbers;
  int size;
  __device__ double read(int i, int j) const { return numbers.read(i * size + j); }
  __device__ void write(int i, int j, double value) const { numbers.write(i * size + j, value); }
  // The pivot's column before a step, and its row divided by the pivot.
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

// Calls visit(i, j) for all entries, which are distributed over the threads.
template <typename Visit>
__device__ __forceinline__ void for_each_entry(int size, Visit&& visit) {
  constexpr int kSide = 16;
  static_assert(kSide * kSide == kSystemThreads);
  for (int i = static_cast<int>(threadIdx.x) / kSide; i < size; i += kSide)
    for (int j = static_cast<int>(threadIdx.x) % kSide; j < size; j += kSide) visit(i, j);
}

// Replaces the matrix by its inverse, or by NaN if it is not positive definite.
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

// Writes the inverse of one cluster's matrix to `to`, with row stride M, in the order of its list;
// of_pair(i, j) returns |x_i - x_j|^2. `sweep` is a workspace of two rows of M values.
template <typename OfPair>
__device__ __forceinline__ void invert_system(const Shared<double>& shared, const int32_t* order,
                                              int size, int64_t M, double scale, double ridge,
                                              OfPair&& of_pair, double* to, double* sweep) {
  const auto entry = [&](int i, int j) {
    if (i == j) return 1 + ridge;
    return exponential(-of_pair(order[i], order[j]) * scale / 2);
  };
  if (size <= kSmallSystem) {
    const SystemInShared system{shared, size};
    for_each_entry(size, [&](int i, int j) { system.write(i, j, entry(i, j)); });
    invert(system);
    for_each_entry(size, [&](int i, int j) { to[i * M + j] = system.read(i, j); });
  } else {
    const SystemInGlobal system{to, sweep, M, size};
    for_each_entry(size, [&](int i, int j) { system.write(i, j, entry(i, j)); });
    invert(system);
  }
}

}  // namespace itm::cuda
