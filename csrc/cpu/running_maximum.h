#pragma once
// The running maximum of each row or column over the tiles visited so far, and its index.

#include <ATen/ops/full.h>

#include <limits>

#include "cpu/score_tiles.h"

namespace itm::cpu {

struct RunningMaximum {
  Tensor value, index;  // -inf and -1 before the first score

  RunningMaximum(int64_t anchors, const at::TensorOptions& options)
      : value(at::full({anchors}, -std::numeric_limits<double>::infinity(), options)),
        index(at::full({anchors}, -1, options.dtype(at::kLong))) {}

  template <typename T>
  T* values() const {
    return value.mutable_data_ptr<T>();
  }
  int64_t* indices() const { return index.mutable_data_ptr<int64_t>(); }
};

template <typename T>
void update_rows(const Tile<T>& t, const RunningMaximum& rows) {
  const auto& loop = loops<T>();
  T* value = rows.values<T>() + t.first_row;
  int64_t* index = rows.indices() + t.first_row;
  parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
    loop.row_max(t.data, t.columns, r0, r1, t.first_column, value, index);
  });
}

template <typename T>
void update_columns(const Tile<T>& t, const RunningMaximum& columns) {
  const auto& loop = loops<T>();
  T* value = columns.values<T>() + t.first_column;
  int64_t* index = columns.indices() + t.first_column;
  parallel_for(0, t.columns, grain(t.rows), [&](int64_t c0, int64_t c1) {
    loop.column_max(t.data, t.rows, t.columns, c0, c1, t.first_row, value, index);
  });
}

}  // namespace itm::cpu
