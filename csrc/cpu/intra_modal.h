#pragma once
// The key of two rows of one modality: their similarity or distance under a metric and a mode of
// the intra-modal constraint.

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "aten/unit_rows.h"
#include "cpu/distances.h"
#include "cpu/same_id.h"

namespace itm::cpu {

constexpr int64_t kKeyRows = 128;    // rows of a block per thread
constexpr int64_t kMostRows = 2048;  // rows of a block: its square of keys is 16 MiB in fp32

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

  // Returns whether distances are divided by the norm of their row and bounds belong to rows.
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

  // Returns the rows of the blocks that for_each_upper_tile visits. A block on the diagonal, which
  // is one tile, computes its pairs twice: distances, which cost more than products, use fewer
  // rows.
  int64_t rows_at_once() const {
    return product ? std::min<int64_t>(kKeyRows * at::get_num_threads(), kMostRows) : kKeyRows;
  }

  // Calls visit(tile) for every tile on and above the diagonal, in blocks of rows.
  template <typename T, typename Visit>
  void for_each_upper_tile(Visit&& visit) const {
    const int64_t N = x.size(0);
    for (int64_t i = 0; i < N; i += rows_at_once())
      for_each_tile<T>(i, std::min(rows_at_once(), N - i), i, visit);
  }
};

// Returns the bounded sums of distances relative to each row's norm, and the bounds and norms.
std::tuple<Tensor, Tensor, Tensor, Tensor> relative_sums(const Keys& keys,
                                                         const OptionalTensor& ids, double lower,
                                                         double upper, bool per_row);

// Returns their gradient. The weights of the pairs are recomputed from the saved bounds and norms.
Tensor relative_gradient(const Keys& keys, const Tensor& grad, const OptionalTensor& ids,
                         const Tensor& row, const Tensor& low, const Tensor& high,
                         const Tensor& norm);

}  // namespace itm::cpu
