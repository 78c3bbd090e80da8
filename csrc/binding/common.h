#pragma once
// What every CPU operator needs from ATen: the loops of this processor, precision, blocks of
// scores.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"

namespace itm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The loops for the instruction set that ATen uses: ATEN_CPU_CAPABILITY chooses both.
const cpu::Kernels& kernels();

// fp16 and bf16 are computed in fp32; rows are made contiguous.
Tensor wide(const Tensor& x);

inline const int64_t* ids_or_null(const OptionalTensor& ids) {
  return ids.has_value() ? ids->const_data_ptr<int64_t>() : nullptr;
}

// Rows [first_row, + rows) x columns [first_column, + columns) of x y^T, at data.
template <typename T>
struct Tile {
  int64_t first_row, rows, first_column, columns;
  T* data;

  T* row(int64_t r) const { return data + r * columns; }
};

// 128 rows a thread by 2048 columns in fp32 are 1 MiB: they stay in a second-level cache between
// the product that writes them and the loops that reduce them.
constexpr int64_t kTileRows = 128, kTileColumns = 2048;

// Calls visit(tile) for all blocks of alpha x y^T, rows outside, columns inside, both in increasing
// order. The products are the library's and use all threads; visit runs its own loops in parallel.
template <typename T, typename Visit>
void for_each_tile(const Tensor& x, const Tensor& y, double alpha, Visit&& visit) {
  const int64_t N = x.size(0), M = y.size(0);
  const int64_t most_rows = std::min(N, kTileRows * at::get_num_threads());
  const int64_t most_columns = std::min(M, kTileColumns);
  const Tensor buffer = at::empty({most_rows * most_columns}, x.options());
  for (int64_t i = 0; i < N; i += most_rows) {
    const int64_t rows = std::min(most_rows, N - i);
    const Tensor left = x.narrow(0, i, rows);
    for (int64_t j = 0; j < M; j += most_columns) {
      const int64_t columns = std::min(most_columns, M - j);
      Tensor scores = buffer.narrow(0, 0, rows * columns).view({rows, columns});
      at::addmm_out(scores, scores, left, y.narrow(0, j, columns).t(), /*beta=*/0, alpha);
      visit(Tile<T>{i, rows, j, columns, scores.template mutable_data_ptr<T>()});
    }
  }
}

// Sends dL/d(x y^T) to x and y: calls weigh(tile) to turn every tile of alpha x y^T into its
// gradient W, in place, and returns W y and W^T x.
template <typename T, typename Weigh>
std::tuple<Tensor, Tensor> products_of_weights(const Tensor& x, const Tensor& y, double alpha,
                                               Weigh&& weigh) {
  Tensor grad_x = at::zeros_like(x), grad_y = at::zeros_like(y);
  for_each_tile<T>(x, y, alpha, [&](const Tile<T>& t) {
    weigh(t);
    const Tensor W = at::from_blob(t.data, {t.rows, t.columns}, x.options());
    grad_x.narrow(0, t.first_row, t.rows).addmm_(W, y.narrow(0, t.first_column, t.columns));
    grad_y.narrow(0, t.first_column, t.columns).addmm_(W.t(), x.narrow(0, t.first_row, t.rows));
  });
  return {grad_x, grad_y};
}

// Small loops stay on one thread: waking another costs about 20,000 additions.
inline int64_t grain(int64_t work_per_item) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work_per_item));
}

}  // namespace itm
