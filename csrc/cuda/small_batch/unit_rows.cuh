#pragma once
// Rows normalised as in torch.nn.functional.normalize, and the gradient: one sum over a row, then
// one pass that writes it. D determines the warps per row, so that 128 rows of D = 1024 keep 128
// multiprocessors busy, and a row's bits do not depend on the other rows.

#include "cuda/compat.cuh"
#include "cuda/small_batch/unit_rows.h"
#include "cuda/warp.cuh"

namespace itm::cuda {

constexpr int kRowWarps = 8, kRowThreads = 32 * kRowWarps;
constexpr double kSmallestNorm = 1e-12;  // as in torch.nn.functional.normalize

// Propagates NaN. A row of norm 0 has no direction: dividing by infinity makes its unit row and its
// gradient 0.
template <typename C>
__device__ __forceinline__ C divisor(C norm) {
  if (norm == 0) return C(INFINITY);
  return norm < C(kSmallestNorm) ? C(kSmallestNorm) : norm;
}

// Sums a value over a group of adjacent warps, in a fixed order; all of them return the sum.
template <typename C>
__device__ C sum_warps(const Shared<C>& scratch, C value, int warps) {
  value = warp_sum(value);
  if (warps == 1) return value;
  if (lane() == 0) scratch.write(warp(), value);
  __syncthreads();
  const int first = warp() / warps * warps;
  C sum = 0;
  for (int w = first; w < first + warps; ++w) sum += scratch.read(w);
  return sum;
}

// The distribution of the rows of [rows, D] over the warps of all blocks.
struct RowSplit {
  int64_t rows, D;
  int warps;  // per row: 1, 2, 4 or 8

  // Four values per thread: one warp alone would wait eight times as often for a row of D = 1024.
  RowSplit(int64_t rows, int64_t D)
      : rows(rows),
        D(D),
        warps(D <= 128   ? 1
              : D <= 256 ? 2
              : D <= 512 ? 4
                         : kRowWarps) {}

  int64_t blocks() const { return ceil_div(rows * warps, kRowWarps); }
  __device__ __forceinline__ int64_t row(int64_t first_block) const {
    return (first_block + blockIdx.x) * (kRowWarps / warps) + warp() / warps;
  }
  __device__ __forceinline__ int start() const { return warp() % warps * 32 + lane(); }
  __device__ __forceinline__ int step() const { return 32 * warps; }
  __device__ __forceinline__ int64_t end(int64_t row) const { return row < rows ? D : 0; }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    unit_rows_kernel(AnyRows x, RowSplit split, int64_t first_block, Wide<T>* unit, Wide<T>* norm) {
  wait_for_launch_before();
  using C = Wide<T>;
  const auto scratch = Shared<C>::template all<kRowWarps>();
  const int64_t n = split.row(first_block), end = split.end(n);
  const T* const from = static_cast<const T*>(x.data) + n * x.stride;
  C square = 0;
#pragma unroll 4
  for (int64_t d = split.start(); d < end; d += split.step()) {
    const C value = widen(from[d * x.column_stride]);
    square += value * value;
  }
  const C own = root(sum_warps(scratch, square, split.warps));
  if (n < split.rows && split.start() == 0) norm[n] = own;
#pragma unroll 4
  for (int64_t d = split.start(); d < end; d += split.step())
    unit[n * split.D + d] = widen(from[d * x.column_stride]) / divisor(own);
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    unit_rows_gradient_kernel(AnyRows grad, RowSplit split, int64_t first_block,
                              const Wide<T>* unit, const Wide<T>* norm, T* out) {
  wait_for_launch_before();
  using C = Wide<T>;
  const auto scratch = Shared<C>::template all<kRowWarps>();
  const int64_t n = split.row(first_block), end = split.end(n);
  const C* const from = static_cast<const C*>(grad.data) + n * grad.stride;
  C along = 0;
#pragma unroll 4
  for (int64_t d = split.start(); d < end; d += split.step())
    along += from[d * grad.column_stride] * unit[n * split.D + d];
  along = sum_warps(scratch, along, split.warps);
  if (n >= split.rows) return;
  // A unit vector has no derivative along itself; a row below the smallest norm is not normalised.
  const C own = norm[n];
  if (!(own > C(kSmallestNorm))) along = 0;
#pragma unroll 4
  for (int64_t d = split.start(); d < end; d += split.step()) {
    const C across = from[d * grad.column_stride] - along * unit[n * split.D + d];
    narrow(across / divisor(own), out[n * split.D + d]);
  }
}

}  // namespace itm::cuda
