#pragma once
// How a metric and a mode of the intra-modal constraint compare two rows of one modality.

#include <string_view>

#include "cpu/distances.h"
#include "cpu/same_id.h"

namespace itm {

constexpr int64_t kKeyRows = 128;    // of a block, per thread
constexpr int64_t kMostRows = 2048;  // of a block, whose square of keys is then 16 MiB of fp32

struct Keys {
  bool product, unit, official, repel, l1, l2;
  Tensor x;  // rows in fp32 or better
  std::optional<UnitRows> directions;

  Keys(const Tensor& rows, std::string_view metric, std::string_view mode)
      : product(metric == "cosine"),
        unit(product && mode != "official"),
        official(mode == "official"),
        repel(mode == "repel"),
        l1(metric == "l1"),
        l2(metric == "l2"),
        x(wide(rows)) {
    if (unit) directions.emplace(x);
  }

  // Distances that are divided by the norm of their row, within bounds of their row.
  bool relative() const { return official && !product; }
  const Tensor& compared() const { return unit ? directions->rows : x; }

  // Calls visit(tile) for the keys of rows [first, + rows) with columns [from, N), in tiles.
  template <typename T, typename Visit>
  void for_each_tile(int64_t first, int64_t rows, int64_t from, Visit&& visit) const {
    const int64_t N = x.size(0), most = std::min(N - from, std::max(rows, kTileColumns));
    const Tensor buffer = at::empty({rows * most}, x.options());
    const Tensor left = compared().narrow(0, first, rows);
    for (int64_t j = from; j < N; j += most) {
      const int64_t columns = std::min(most, N - j);
      Tensor keys = buffer.narrow(0, 0, rows * columns).view({rows, columns});
      const Tensor right = compared().narrow(0, j, columns);
      if (product) {
        at::addmm_out(keys, keys, left, right.t(), /*beta=*/0, unit ? -1 : 1);
        if (unit) keys.add_(1);
      } else {
        distances<T>(left, right, !l1, keys);
        if (l2) keys.sqrt_();
      }
      visit(Tile<T>{first, rows, j, columns, keys.template mutable_data_ptr<T>()});
    }
  }

  // Rows of the blocks that the next one visits. A block on the diagonal holds its pairs twice:
  // distances, which cost more than products, take fewer rows at once. That block is one tile.
  int64_t rows_at_once() const {
    return product ? std::min<int64_t>(kKeyRows * at::get_num_threads(), kMostRows) : kKeyRows;
  }

  // The same for every tile on and above the diagonal, in blocks of rows.
  template <typename T, typename Visit>
  void for_each_upper_tile(Visit&& visit) const {
    const int64_t N = x.size(0);
    for (int64_t i = 0; i < N; i += rows_at_once())
      for_each_tile<T>(i, std::min(rows_at_once(), N - i), i, visit);
  }
};

// Sums of distances relative to each row's norm.
std::tuple<Tensor, Tensor, Tensor, Tensor> relative_sums(const Keys& keys,
                                                         const OptionalTensor& ids, double lower,
                                                         double upper, bool per_row);

// Their gradient: the saved bounds and norms make every pair's weight again.
Tensor relative_gradient(const Keys& keys, const Tensor& grad, const OptionalTensor& ids,
                         const Tensor& row, const Tensor& low, const Tensor& high,
                         const Tensor& norm);

}  // namespace itm
