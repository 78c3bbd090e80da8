#pragma once
// The hardest negative of every row and column, and every column's positive score.

#include "binding/maxima.h"
#include "binding/pairs.h"

namespace itm {

struct Hardest {
  Tensor positive;
  Maxima row, column;

  Hardest(const Tensor& x, const Tensor& y)
      : positive(at::full({y.size(0)}, std::numeric_limits<double>::quiet_NaN(), x.options())),
        row(x.size(0), x.options()),
        column(y.size(0), x.options()) {}
};

// True where screening pays: bf16 products in hardware, and enough of them.
bool screening_pays(const Tensor& x, const Tensor& y);

// The same from products in bf16, whose rounding is bounded, and exact products of the few pairs
// that the bound cannot tell from the maximum. Nothing where those are not few, or where a row is
// not finite or so large that its products are not.
std::optional<Hardest> screened(const Tensor& x, const Tensor& y, const int64_t* positive_of,
                                const SameId& same);

}  // namespace itm
