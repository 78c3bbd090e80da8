#pragma once
// Pairs of a row and a column that share an id: positives, and pairs that are no negatives.

#include <ATen/ops/sort.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "aten/optional_ids.h"
#include "cpu/parallel.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {

// The pairs that share an id. Without ids they are the diagonal. With ids, a binary search in the
// sorted ids finds the columns of each row, so that the dense loops never compare ids.
class SameId {
 public:
  SameId(const OptionalTensor& row_ids, const OptionalTensor& column_ids) {
    if (!row_ids.has_value() || is_diagonal(*row_ids, *column_ids)) return;
    rows_ = row_ids->contiguous();
    std::tie(sorted_, order_) = at::sort(*column_ids, std::optional<bool>(true), /*dim=*/0);
  }

  // Calls found(c) for every column of the tile that shares the id of the tile's row r.
  template <typename T, typename Found>
  void for_each_in_row(const Tile<T>& tile, int64_t r, Found&& found) const {
    const int64_t i = tile.first_row + r, last = tile.first_column + tile.columns;
    if (!rows_.defined()) {
      if (i >= tile.first_column && i < last) found(i - tile.first_column);
      return;
    }
    const auto [first, stop] = columns_of(i);
    const int64_t* at = std::lower_bound(first, stop, tile.first_column);
    for (; at != stop && *at < last; ++at) found(*at - tile.first_column);
  }

  bool operator()(int64_t row, int64_t column) const {
    if (!rows_.defined()) return row == column;
    const auto [first, stop] = columns_of(row);
    return std::binary_search(first, stop, column);
  }

 private:
  Tensor rows_, sorted_, order_;

  // Returns the columns that share a row's id, in increasing order: the sort is stable.
  std::pair<const int64_t*, const int64_t*> columns_of(int64_t row) const {
    const int64_t id = rows_.const_data_ptr<int64_t>()[row];
    const int64_t* sorted = sorted_.const_data_ptr<int64_t>();
    const auto [first, end] = std::equal_range(sorted, sorted + sorted_.size(0), id);
    const int64_t* order = order_.const_data_ptr<int64_t>();
    return {order + (first - sorted), order + (end - sorted)};
  }

  // Returns whether both sides are the same strictly increasing ids, whose pairs are the diagonal:
  // one pass instead of a sort.
  static bool is_diagonal(const Tensor& row_ids, const Tensor& column_ids) {
    const auto *id = row_ids.const_data_ptr<int64_t>(), *last = id + row_ids.size(0);
    return id == column_ids.const_data_ptr<int64_t>() && row_ids.size(0) == column_ids.size(0) &&
           row_ids.is_contiguous() && column_ids.is_contiguous() &&
           std::adjacent_find(id, last, std::greater_equal<>()) == last;
  }
};

// Calls found(r, c) for every entry of the tile whose pair shares an id, rows in parallel.
template <typename T, typename Found>
void for_each_same_id(const Tile<T>& tile, const SameId& same, Found&& found) {
  parallel_for(0, tile.rows, grain(64), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      same.for_each_in_row(tile, r, [&](int64_t c) { found(r, c); });
  });
}

// Excludes the pairs that share an id from every maximum and sum: their scores become -inf.
template <typename T>
void exclude(const Tile<T>& tile, const SameId& same) {
  for_each_same_id(tile, same, [&](int64_t r, int64_t c) {
    tile.row(r)[c] = -std::numeric_limits<T>::infinity();
  });
}

}  // namespace itm::cpu
