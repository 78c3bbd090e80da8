#pragma once
// Rows normalised to norm 1, whose dot products are cosines.

#include <ATen/core/Tensor.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <limits>

#include "aten/wide.h"

namespace itm {

// x / max(|x|, eps), as torch.nn.functional.normalize. A zero row has no direction: its divisor is
// infinite, so that its unit row and its gradient are 0.
struct UnitRows {
  static constexpr double kSmallest = 1e-12;
  Tensor norm, divisor, rows;

  explicit UnitRows(const Tensor& x)
      : norm(at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, true)),
        divisor(norm.clamp_min(kSmallest).masked_fill_(norm.eq(0),
                                                       std::numeric_limits<double>::infinity())),
        rows(x.div(divisor)) {}

  // Returns the gradient of x from that of its unit rows, less its component along each unit row.
  Tensor gradient(const Tensor& of_rows) const {
    const Tensor along = of_rows.mul(rows).sum(-1, true).mul(rows);
    const Tensor tangential = at::where(norm.gt(kSmallest), of_rows.sub(along), of_rows);
    return tangential.div(divisor);
  }
};

// Raises for operators whose native kernels require unit rows. Other backends also accept raw rows
// with cosine=True.
inline void refuse_cosine(bool cosine) {
  TORCH_CHECK(!cosine, "itm_kernels: native kernels take unit rows; pass cosine=False");
}

}  // namespace itm
