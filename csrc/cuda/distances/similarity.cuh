#pragma once
// Matrices of distances. Small problems are split over D as well: every part writes its own sums,
// which are added in a fixed order, so the same inputs give the same bits.

#include "cuda/distances/tile.cuh"
#include "cuda/partial_sums.cuh"

namespace itm::cuda {

// Two batches of rows, and the split of D into parts of `depth` columns, a multiple of a chunk.
template <typename T>
struct SplitRows {
  Rows<T> x, y;
  int64_t batch, D, parts, depth;
};

// The pairs that a block compares, and its part of D.
template <typename Tile>
struct DistanceBlock {
  int64_t first_row, first_column, batch, part;

  __device__ __forceinline__ DistanceBlock(const SplitRows<typename Tile::T>& in, int64_t block) {
    const int64_t columns = ceil_div(in.y.count, Tile::kColumns);
    const int64_t rows = ceil_div(in.x.count, Tile::kRows);
    first_column = block % columns * Tile::kColumns;
    first_row = block / columns % rows * Tile::kRows;
    batch = block / columns / rows % in.batch;
    part = block / columns / rows / in.batch;
  }
};

template <typename Tile, typename Metric>
__global__ void __launch_bounds__(Tile::kThreads, 512 / Tile::kThreads)
    distance_kernel(SplitRows<typename Tile::T> in, bool take_root, int64_t first_block,
                    typename Tile::T* out,        // [batch, N, M]; null: parts are written
                    typename Tile::C* partial) {  // [parts, batch, N, M], if there are several
  wait_for_launch_before();
  Tile tile;
  {
    const DistanceBlock<Tile> here(in, first_block + block_index());
    const int64_t d = here.part * in.depth, end = d + in.depth < in.D ? d + in.depth : in.D;
    tile.template compare<Metric>(in.x.of_batch(here.batch), in.y.of_batch(here.batch),
                                  here.first_row, here.first_column, d, end,
                                  [](int, auto&, int, int) { return false; });
  }
  const DistanceBlock<Tile> here(in, first_block + block_index());
  const int64_t N = in.x.count, M = in.y.count;
  const int row = Tile::row(0), column = Tile::column(0);
  const int rows_left = window(N - here.first_row, Tile::kRows) - row;
  const int columns_left = window(M - here.first_column, Tile::kColumns) - column;
  const int64_t at = (here.batch * N + here.first_row + row) * M + here.first_column + column;
  const auto store = [&](auto* to, auto value_of) {
    to += at;
#pragma unroll
    for (int i = 0; i < Tile::kOwnRows; ++i, to += Tile::kThreadRows * M) {
      if (i * Tile::kThreadRows >= rows_left) break;
#pragma unroll
      for (int j = 0; j < Tile::kOwnColumns; ++j)
        if (j * Tile::kThreadColumns < columns_left)
          narrow(value_of(tile.sum[i][j]), to[j * Tile::kThreadColumns]);
    }
  };
  using C = typename Tile::C;
  if (in.parts > 1 || !out)
    store(partial + here.part * in.batch * N * M, [](C sum) { return sum; });
  else if (take_root)
    store(out, [](C sum) { return root(sum); });
  else
    store(out, [](C sum) { return sum; });
}

// out[i] = the sum of partial[part][i] over the parts, or its square root.
template <typename T>
__global__ void add_parts_kernel(const Wide<T>* partial, int64_t parts, int64_t size,
                                 bool take_root, int64_t first_block, T* out) {
  wait_for_launch_before();
  const int64_t i = (first_block + blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  Wide<T> sum[1];
  read_parts(partial, parts, size, {i}, sum);
  narrow(take_root ? root(sum[0]) : sum[0], out[i]);
}

}  // namespace itm::cuda
