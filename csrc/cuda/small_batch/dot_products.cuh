#pragma once
// A block multiplies 32 x 32 rows of one pair of matrices over one part of D. Tiles at a matrix's
// first columns or rows also have all of that part of its rows in shared memory, where each of the
// 64 threads adds up the squares of one of the 64 rows.

#include "cuda/compat.cuh"
#include "cuda/distances/tile.cuh"
#include "cuda/small_batch/dot_products.h"

namespace itm::cuda {

template <typename T>
struct DotProductRows {
  Rows<T> x, y;
  Wide<T>*parts, *x_squares, *y_squares;

  __device__ __forceinline__ int columns() const {
    return static_cast<int>(ceil_div(y.count, SmallTile<T>::kColumns));
  }
  __device__ __forceinline__ int tiles() const {
    return static_cast<int>(ceil_div(x.count, SmallTile<T>::kRows)) * columns();
  }
};

template <typename T>
struct DotProductsGrid {
  DotProductRows<T> of[kMostProducts];
  int count, tiles;  // tiles of all pairs
  int D, depth;      // columns in total, and of a part
  unsigned* ticket;
};

// Returns the pair of matrices of a tile of the grid; `tile` becomes its index within the pair. The
// loop is unrolled so that the indices into the array, a kernel argument, are constants; otherwise
// the array moves to local memory.
template <typename T>
__device__ __forceinline__ DotProductRows<T> find_product(const DotProductsGrid<T>& all,
                                                          int& tile) {
  DotProductRows<T> found = all.of[0];
#pragma unroll
  for (int i = 1; i < kMostProducts; ++i) {
    const int before = found.tiles();
    if (i < all.count && tile >= before)
      tile -= before, found = all.of[i];
    else
      break;
  }
  return found;
}

template <typename T>
__global__ void __launch_bounds__(SmallTile<T>::kThreads, 8)
    dot_products_kernel(DotProductsGrid<T> all, int64_t first_block) {
  using Tile = SmallTile<T>;
  using C = Wide<T>;
  static_assert(Tile::kThreads == Tile::kRows + Tile::kColumns);
  wait_for_launch_before();
  const int block = static_cast<int>(first_block) + static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x), part = block / all.tiles;
  if (block == 0 && thread == 0 && all.ticket) *all.ticket = 0;
  int tile_of_pair = block % all.tiles;
  const DotProductRows<T> in = find_product(all, tile_of_pair);
  const int row = tile_of_pair / in.columns() * Tile::kRows;
  const int column = tile_of_pair % in.columns() * Tile::kColumns;
  const int d = part * all.depth, end = d + all.depth < all.D ? d + all.depth : all.D;

  // The row of x or y whose squares this thread adds.
  const bool of_x = thread < Tile::kRows;
  const int own = of_x ? row + thread : column + thread - Tile::kRows;
  const int rows = static_cast<int>(of_x ? in.x.count : in.y.count);
  C* squares = of_x ? in.x_squares : in.y_squares;
  if ((of_x ? column : row) != 0 || own >= rows) squares = nullptr;
  C square = 0;
  Tile tile;
  tile.template compare<Product>(
      in.x, in.y, row, column, d, end, [](int, auto&, int, int) { return false; },
      [&](const Shared<C>& shared, int stage) {
        if (!squares) return;
#pragma unroll
        for (int k = 0; k < Tile::kDepth; k += 4) {
          const auto four = shared.template read<Four<C>>(stage + thread * Tile::kPitch + k);
#pragma unroll
          for (int e = 0; e < 4; ++e) square += four.v[e] * four.v[e];
        }
      });
  if (squares) squares[part * rows + own] = square;

  const int N = static_cast<int>(in.x.count), M = static_cast<int>(in.y.count);
  C* to = in.parts + static_cast<int64_t>(part) * N * M;
#pragma unroll
  for (int i = 0; i < Tile::kOwnRows; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kOwnColumns; ++j) {
      const int n = row + Tile::row(i), m = column + Tile::column(j);
      if (n < N && m < M) to[n * M + m] = tile.sum[i][j];
    }
}

}  // namespace itm::cuda
