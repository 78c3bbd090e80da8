#pragma once
// The score matrix alpha x y^T in tiles that fit a cache, and the gradients of x and y from it.

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "aten/wide.h"
#include "cpu/huge_pages.h"
#include "cpu/instruction_set.h"
#include "cpu/parallel.h"

namespace itm::cpu {

// Rows [first_row, + rows) x columns [first_column, + columns) of a matrix, stored densely at data.
template <typename T>
struct Tile {
  int64_t first_row, rows, first_column, columns;
  T* data;

  T* row(int64_t r) const { return data + r * columns; }
};

// 512 rows per thread by 512 columns are 1 MiB in fp32: they stay in a second-level cache between
// the product that writes them and the loops that reduce them. The BLAS library packs both operands
// of every product: tiles of 128 x 2048 took 1.2 times as long (4096 x 4096, D = 1024).
constexpr int64_t kTileRows = 512, kTileColumns = 512;

// Most rows of a block whose gradient is a product with it: the library's kernels for narrow
// products add row after row, and a long chain of additions loses digits.
constexpr int64_t kMostBlockRows = 4096;

// Entries of a block while the scores are computed and kept. Blocks that fit a cache save nothing
// then, and the product takes 1.5 times as long in blocks of 128 rows as in blocks of 2,048 (4096 x
// 4096).
constexpr int64_t kStoredEntries = 1 << 23;

// Entries of a block of kept scores in the backward pass. The product of every block reads and
// writes all of grad_y: with 2^18 entries that adds a third to the time, from 2^21 on nothing (4096
// x 4096, D = 1024).
constexpr int64_t kReadEntries = 1 << 21;

// Computes tiles of alpha x y^T one at a time, in one buffer; tiles of few columns have more rows.
// If a matrix [N, M] is given to keep, the tiles are blocks of whole rows of it instead.
//
// The products are the library's and use all threads. Rows and columns are divided evenly: the
// library multiplies a narrow last tile by other code than the rest, and equal rows would no longer
// have equal scores (84 % of the scores of a tile of 5 columns differ from those of the same rows
// among 2,048; from 16 columns on, none).
template <typename T>
class ScoreTiles {
 public:
  const int64_t N, M;
  const int64_t columns, rows;  // of all tiles but the last; even numbers

  ScoreTiles(const Tensor& x, const Tensor& y, double alpha, const Tensor& kept = {})
      : N(x.size(0)),
        M(y.size(0)),
        columns(kept.defined() ? M : even_share(M, kTileColumns)),
        rows(even_share(N, std::max<int64_t>(1, kept.defined() ? kStoredEntries / columns
                                                               : std::min(kMostBlockRows,
                                                                          in_cache() / columns)))),
        x_(x),
        y_(y),
        kept_(kept),
        buffer_(kept.defined() ? kept : at::empty({rows * columns}, x.options())),
        alpha_(alpha) {}

  // Overwrites the previous tile, unless the scores are kept.
  Tile<T> operator()(int64_t first_row, int64_t first_column) const {
    const int64_t r = std::min(rows, N - first_row), c = std::min(columns, M - first_column);
    Tensor scores =
        kept_.defined() ? kept_.narrow(0, first_row, r) : buffer_.narrow(0, 0, r * c).view({r, c});
    const Tensor left = x_.narrow(0, first_row, r), right = y_.narrow(0, first_column, c);
    // Libraries skip the product for a factor of 0, and some for NaN. A NaN in the rows or in the
    // factor must reach the scores.
    const bool plain = std::isfinite(alpha_) && alpha_ != 0;
    at::addmm_out(scores, scores, left, right.t(), /*beta=*/0, plain ? alpha_ : 1.);
    if (!plain) scores.mul_(alpha_);
    return {first_row, r, first_column, c, scores.template mutable_data_ptr<T>()};
  }

 private:
  static int64_t in_cache() { return kTileRows * at::get_num_threads() * kTileColumns; }

  static int64_t even_share(int64_t size, int64_t most) {
    const int64_t blocks = std::max<int64_t>(1, (size + most - 1) / most);
    return std::min(size, ((size + blocks - 1) / blocks + 15) / 16 * 16);
  }

  const Tensor x_, y_, kept_, buffer_;
  const double alpha_;
};

// Calls visit(tile) for all tiles of alpha x y^T, row by row of tiles, in increasing order. Each
// call runs its own parallel loops. If `kept` is given, it holds what visit leaves in the tiles.
template <typename T, typename Visit>
void for_each_tile(const Tensor& x, const Tensor& y, double alpha, Visit&& visit,
                   const Tensor& kept = {}) {
  const ScoreTiles<T> tiles(x, y, alpha, kept);
  for (int64_t i = 0; i < tiles.N; i += tiles.rows)
    for (int64_t j = 0; j < tiles.M; j += tiles.columns) visit(tiles(i, j));
}

// Returns the matrix [N, M] in which a forward pass saves its scores for the backward pass, or a
// matrix without entries.
inline Tensor scores_to_keep(bool keep, const Tensor& x, const Tensor& y) {
  return empty_in_huge_pages({keep ? x.size(0) : 0, keep ? y.size(0) : 0}, x.options());
}

// Returns the matrix if it has entries, else an undefined tensor.
inline Tensor if_kept(const Tensor& scores) { return scores.numel() ? scores : Tensor(); }

// Calls visit(tile) for copies of blocks of whole rows of kept scores. visit may overwrite them.
template <typename T, typename Visit>
void for_each_kept_tile(const Tensor& kept, Visit&& visit) {
  const int64_t N = kept.size(0), M = kept.size(1);
  const int64_t rows = std::min({N, kMostBlockRows, std::max<int64_t>(1, kReadEntries / M)});
  const Tensor buffer = at::empty({rows, M}, kept.options());
  for (int64_t i = 0; i < N; i += rows) {
    const int64_t r = std::min(rows, N - i);
    buffer.narrow(0, 0, r).copy_(kept.narrow(0, i, r));
    visit(Tile<T>{i, r, 0, M, buffer.template mutable_data_ptr<T>()});
  }
}

// Writes a b to out, or adds it. The library's kernels for narrow products continue the chain of
// additions in out; those for wide products sum a product separately first.
inline void add_product(Tensor out, const Tensor& a, const Tensor& b, bool first) {
  constexpr int64_t kNarrow = 16;
  if (!first && std::min(out.size(0), out.size(1)) < kNarrow)
    out.add_(a.mm(b));
  else
    out.addmm_(a, b, /*beta=*/!first);
}

// Returns W y and W^T x for the gradient W = dL/d(x y^T). to_gradient(tile) turns each tile of
// alpha x y^T, or of the kept scores, into its part of W in place.
template <typename T, typename ToGradient>
std::tuple<Tensor, Tensor> tiled_products_gradient(const Tensor& x, const Tensor& y, double alpha,
                                                   const Tensor& kept, ToGradient&& to_gradient) {
  Tensor grad_x = at::empty_like(x), grad_y = at::empty_like(y);
  const auto accumulate = [&](const Tile<T>& t) {
    to_gradient(t);
    const Tensor W = at::from_blob(t.data, {t.rows, t.columns}, x.options());
    const Tensor left = x.narrow(0, t.first_row, t.rows);
    const Tensor right = y.narrow(0, t.first_column, t.columns);
    // The first tile of a row or column writes, the others add.
    add_product(grad_x.narrow(0, t.first_row, t.rows), W, right, t.first_column == 0);
    add_product(grad_y.narrow(0, t.first_column, t.columns), W.t(), left, t.first_row == 0);
  };
  if (kept.numel())
    for_each_kept_tile<T>(kept, accumulate);
  else
    for_each_tile<T>(x, y, alpha, accumulate);
  return {grad_x, grad_y};
}

// Returns the sum of x times y, in fp64 and in the same order for any number of threads.
template <typename T>
double inner_product(const Tensor& x, const Tensor& y) {
  const int64_t N = x.size(0), D = x.size(1);
  const auto& loop = loops<T>();
  const T *a = x.const_data_ptr<T>(), *b = y.const_data_ptr<T>();
  std::vector<double> of_row(N);
  parallel_for(0, N, grain(2 * D), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) of_row[n] = loop.product(a + n * D, b + n * D, D);
  });
  return std::accumulate(of_row.begin(), of_row.end(), 0.0);
}

}  // namespace itm::cpu
