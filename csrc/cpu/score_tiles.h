#pragma once
// What every CPU operator needs from ATen: the loops of this processor, precision, blocks of
// scores.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/simd/loop_table.h"

#if defined(__SANITIZE_THREAD__)
#include <thread>
#endif

namespace itm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The loops for the instruction set that ATen uses, if the CPU has it: ATEN_CPU_CAPABILITY chooses
// both.
const cpu::Kernels& kernels();

// fp16 and bf16 are computed in fp32; rows are made contiguous.
Tensor wide(const Tensor& x);

// Uninitialised, for what a call writes as a whole and returns: large results in large pages.
Tensor room(at::IntArrayRef shape, const at::TensorOptions& options);

inline const int64_t* ids_or_null(const OptionalTensor& ids) {
  return ids.has_value() ? ids->const_data_ptr<int64_t>() : nullptr;
}

#if defined(__SANITIZE_THREAD__)
// The thread sanitizer does not see the barriers of OpenMP, whose library it has not compiled.
template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, Work&& work) {
  const int64_t tasks = (end - begin + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  const int64_t share = threads ? (end - begin + threads - 1) / threads : 0;
  std::vector<std::thread> running;
  for (int64_t first = begin; first < end; first += share)
    running.emplace_back(
        [&work, first, last = std::min(end, first + share)] { work(first, last); });
  for (std::thread& thread : running) thread.join();
}
#else
using at::parallel_for;
#endif

// Rows [first_row, + rows) x columns [first_column, + columns) of x y^T, at data.
template <typename T>
struct Tile {
  int64_t first_row, rows, first_column, columns;
  T* data;

  T* row(int64_t r) const { return data + r * columns; }
};

// 512 rows a thread by 512 columns in fp32 are 1 MiB: they stay in a second-level cache between the
// product that writes them and the loops that reduce them. The library packs both sides of every
// product: tiles of 128 x 2048 took 1.2 times as long (4096 x 4096, D = 1024).
constexpr int64_t kTileRows = 512, kTileColumns = 512;

// Entries of a block of kept scores. Every block's product passes over all of grad_y: with 2^18
// that takes a third of the time again, from 2^21 on nothing (4096 x 4096, D = 1024).
constexpr int64_t kKeptTile = 1 << 21;

// Rows of a block whose gradient is a product with it: the library's kernels for narrow products
// add row after row, and a long chain loses digits.
constexpr int64_t kRowsAtOnce = 4096;

// Entries of a block of scores while they are kept: nothing is saved by blocks that fit a cache,
// and the product takes 1.5 times as long in blocks of 128 rows as in blocks of 2,048 (4096 x
// 4096).
constexpr int64_t kKeptBlock = 1 << 23;

// Blocks of alpha x y^T, one at a time in one buffer; of few columns, a block takes more rows. A
// matrix [N, M] to keep, where one is given, is filled by blocks of whole rows instead. The
// products are the library's and use all threads. Rows and columns are shared out evenly: a last
// block of a few is multiplied by other code than its neighbours, and rows that are equal would no
// longer score the same (84 % of the scores of a block of 5 columns differ from those of the same
// rows among 2,048; from 16 columns on, none).
template <typename T>
class Products {
 public:
  const int64_t N, M;
  const int64_t columns, rows;  // of a block that is not the last; even numbers

  Products(const Tensor& x, const Tensor& y, double alpha, const Tensor& kept = {})
      : N(x.size(0)),
        M(y.size(0)),
        columns(kept.defined() ? M : even_share(M, kTileColumns)),
        rows(even_share(
            N, std::max<int64_t>(1, kept.defined() ? kKeptBlock / columns
                                                   : std::min(kRowsAtOnce, in_cache() / columns)))),
        x_(x),
        y_(y),
        kept_(kept),
        buffer_(kept.defined() ? kept : at::empty({rows * columns}, x.options())),
        alpha_(alpha) {}

  // Overwrites the tile that was returned before, unless it is kept.
  Tile<T> operator()(int64_t first_row, int64_t first_column) const {
    const int64_t r = std::min(rows, N - first_row), c = std::min(columns, M - first_column);
    Tensor scores =
        kept_.defined() ? kept_.narrow(0, first_row, r) : buffer_.narrow(0, 0, r * c).view({r, c});
    const Tensor left = x_.narrow(0, first_row, r), right = y_.narrow(0, first_column, c);
    // Libraries leave the product out for a factor of 0, and some for NaN: both must show what is
    // NaN in the rows or is the factor itself.
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

// Calls visit(tile) for all blocks of alpha x y^T, rows outside, columns inside, both in increasing
// order; visit runs its own loops in parallel. What visit leaves of a tile stays in `kept`.
template <typename T, typename Visit>
void for_each_tile(const Tensor& x, const Tensor& y, double alpha, Visit&& visit,
                   const Tensor& kept = {}) {
  const Products<T> product(x, y, alpha, kept);
  for (int64_t i = 0; i < product.N; i += product.rows)
    for (int64_t j = 0; j < product.M; j += product.columns) visit(product(i, j));
}

// The scores that a forward pass hands to its backward pass: a matrix [N, M], or one without
// entries.
inline Tensor scores_to_keep(bool keep, const Tensor& x, const Tensor& y) {
  return room({keep ? x.size(0) : 0, keep ? y.size(0) : 0}, x.options());
}

// The matrix, if it has entries.
inline Tensor if_kept(const Tensor& scores) { return scores.numel() ? scores : Tensor(); }

// Calls visit(tile) for blocks of whole rows of kept scores, in one buffer that visit may
// overwrite.
template <typename T, typename Visit>
void for_each_kept_tile(const Tensor& kept, Visit&& visit) {
  const int64_t N = kept.size(0), M = kept.size(1);
  const int64_t rows = std::min({N, kRowsAtOnce, std::max<int64_t>(1, kKeptTile / M)});
  const Tensor buffer = at::empty({rows, M}, kept.options());
  for (int64_t i = 0; i < N; i += rows) {
    const int64_t r = std::min(rows, N - i);
    buffer.narrow(0, 0, r).copy_(kept.narrow(0, i, r));
    visit(Tile<T>{i, r, 0, M, buffer.template mutable_data_ptr<T>()});
  }
}

// Writes a b to out, or adds it. The library's kernels for narrow products go on with the chain of
// additions that is there; wider ones add up a product on its own first.
inline void add_product(Tensor out, const Tensor& a, const Tensor& b, bool first) {
  constexpr int64_t kNarrow = 16;
  if (!first && std::min(out.size(0), out.size(1)) < kNarrow)
    out.add_(a.mm(b));
  else
    out.addmm_(a, b, /*beta=*/!first);
}

// Sends dL/d(x y^T) to x and y: calls weigh(tile) to turn every tile of alpha x y^T, or of what was
// kept of it, into its gradient W, in place, and returns W y and W^T x.
template <typename T, typename Weigh>
std::tuple<Tensor, Tensor> products_of_weights(const Tensor& x, const Tensor& y, double alpha,
                                               const Tensor& kept, Weigh&& weigh) {
  Tensor grad_x = at::empty_like(x), grad_y = at::empty_like(y);
  const auto pull = [&](const Tile<T>& t) {
    weigh(t);
    const Tensor W = at::from_blob(t.data, {t.rows, t.columns}, x.options());
    const Tensor left = x.narrow(0, t.first_row, t.rows);
    const Tensor right = y.narrow(0, t.first_column, t.columns);
    // The first tile of a row or column writes, the others add.
    add_product(grad_x.narrow(0, t.first_row, t.rows), W, right, t.first_column == 0);
    add_product(grad_y.narrow(0, t.first_column, t.columns), W.t(), left, t.first_row == 0);
  };
  if (kept.numel())
    for_each_kept_tile<T>(kept, pull);
  else
    for_each_tile<T>(x, y, alpha, pull);
  return {grad_x, grad_y};
}

// Adds `count` rows to out, [D]: add(begin, end, out) adds some of them. Of many, a few hundred at
// a time are summed on their own and then in fp64, so that the error does not grow with the batch.
template <typename T, typename Add>
void add_in_parts(int64_t count, T* out, int64_t D, Add&& add) {
  constexpr int64_t kPart = 256;
  if (count <= kPart) return add(0, count, out);
  std::vector<double> total(out, out + D);
  std::vector<T> part(D);
  for (int64_t begin = 0; begin < count; begin += kPart) {
    std::fill(part.begin(), part.end(), T(0));
    add(begin, std::min(begin + kPart, count), part.data());
    for (int64_t d = 0; d < D; ++d) total[d] += part[d];
  }
  std::copy(total.begin(), total.end(), out);
}

// Small loops stay on one thread: waking another costs about 20,000 additions.
inline int64_t grain(int64_t work_per_item) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work_per_item));
}

}  // namespace itm
