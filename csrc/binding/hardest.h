#pragma once
// The hardest negative of every row and column, and every column's positive score.

#include <ATen/ops/full.h>

#include <limits>

#include "binding/pairs.h"

namespace itm {

struct Hardest {
  Tensor positive, row, row_index, column, column_index;

  Hardest(const Tensor& x, const Tensor& y) {
    const auto lowest = -std::numeric_limits<double>::infinity();
    const auto index = x.options().dtype(at::kLong);
    positive = at::full({y.size(0)}, std::numeric_limits<double>::quiet_NaN(), x.options());
    row = at::full({x.size(0)}, lowest, x.options());
    column = at::full({y.size(0)}, lowest, x.options());
    row_index = at::full({x.size(0)}, -1, index);
    column_index = at::full({y.size(0)}, -1, index);
  }
};

// True where screening pays: bf16 products in hardware, and enough of them.
bool screening_pays(const Tensor& x, const Tensor& y);

// The same from products in bf16, whose rounding is bounded, and exact products of the few pairs
// that the bound cannot tell from the maximum. Nothing where those are not few, or where a row is
// not finite or so large that its products are not.
std::optional<Hardest> screened(const Tensor& x, const Tensor& y, const int64_t* positive_of,
                                const SameId& same);

}  // namespace itm
