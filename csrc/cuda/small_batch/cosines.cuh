#pragma once
// Cosines of raw rows: dot products in parts, divided by the norms of both rows, whose squares are
// in parts as well. A block adds up the squared norms of all rows once; for 128 pairs it waits for
// memory once.

#include "cuda/launch.h"
#include "cuda/small_batch/contrastive.h"
#include "cuda/small_batch/grid_sum.cuh"
#include "cuda/small_batch/score_reductions.cuh"
#include "cuda/small_batch/unit_rows.cuh"

namespace itm::cuda {

template <typename C>
struct DeviceScalar {
  const C* data;
  C value;

  explicit DeviceScalar(const Scalar& from)
      : data(static_cast<const C*>(from.data)), value(static_cast<C>(from.value)) {}
  __device__ __forceinline__ C get() const { return data ? *data : value; }
};

template <typename C>
struct Cosines {
  Scores<C> products;
  const C *x_squares, *y_squares;

  explicit Cosines(const CosineParts& from)
      : products(from.products),
        x_squares(static_cast<const C*>(from.x_squares)),
        y_squares(static_cast<const C*>(from.y_squares)) {}

  // Writes 1 / norm of every row of x, then of y, or 1 without norms; complete for all threads on
  // return. Each half of the block processes one side, and each thread two of its rows at once.
  __device__ __forceinline__ void invert(const Shared<C>& scratch, int at) const {
    constexpr int kHalf = kReductionThreads / 2;
    const bool of_x = static_cast<int>(threadIdx.x) < kHalf;
    const C* const squares = of_x ? x_squares : y_squares;
    const int count = of_x ? products.N : products.M, to = of_x ? at : at + products.N;
    for (int i = static_cast<int>(threadIdx.x) % kHalf; i < count; i += 2 * kHalf) {
      C square[2] = {1, 1};
      if (squares)
        read_parts(squares, products.parts, count, {within(i, count), within(i + kHalf, count)},
                   square);
      scratch.write(to + i, 1 / divisor(root(square[0])));
      if (i + kHalf < count) scratch.write(to + i + kHalf, 1 / divisor(root(square[1])));
    }
    __syncthreads();
  }
  static __device__ __forceinline__ C over(C product, C inverse_of_x, C inverse_of_y) {
    return product * inverse_of_x * inverse_of_y;
  }
};

// A block's memory: the states of 8 columns that eight warps exchange, then norms. The emulator has
// both in one memory; on a device they are two, of which reduce_columns owns the first.
template <typename C, typename State>
struct ReductionMemory {
  static constexpr int kStates = kAnchors * kAnchors * static_cast<int>(sizeof(State) / sizeof(C));
  static constexpr int kNumbers = kStates + 2 * static_cast<int>(kMostRows);
  static_assert(sizeof(State) % sizeof(C) == 0);
};

// Launches a kernel that reduces `anchors` rows and columns.
template <typename C, typename State, typename Reduction>
void launch_cosine_reduction(void (*kernel)(int64_t, Reduction), int64_t anchors, void* stream,
                             const Reduction& reduction) {
  in_launches(ceil_div(anchors, kAnchors), [&](int64_t first, int64_t count) {
    launch(kernel, count, kReductionThreads, ReductionMemory<C, State>::kNumbers * sizeof(C),
           stream, first, reduction);
  });
}

}  // namespace itm::cuda
