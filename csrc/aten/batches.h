#pragma once
// Two batches of rows with broadcast batch dimensions, their products and the gradients of these.

#include <ATen/ExpandUtils.h>
#include <ATen/ops/matmul.h>

#include <tuple>
#include <vector>

#include "aten/unit_rows.h"
#include "aten/wide.h"

namespace itm {

// x [B, N, D] and y [B, M, D], batch dimensions broadcast and flattened.
struct Batches {
  std::vector<int64_t> shape;  // broadcast batch dimensions
  Tensor x, y;

  Batches(const Tensor& left, const Tensor& right)
      : shape(at::infer_size(left.sizes().slice(0, left.dim() - 2),
                             right.sizes().slice(0, right.dim() - 2))),
        x(flat(left)),
        y(flat(right)) {}

  Tensor flat(const Tensor& t) const {
    return t.expand(with(t.size(-2), t.size(-1))).reshape({-1, t.size(-2), t.size(-1)});
  }

  // Returns the sizes of a batch of matrices.
  std::vector<int64_t> with(int64_t rows, int64_t columns) const {
    std::vector<int64_t> sizes = shape;
    sizes.insert(sizes.end(), {rows, columns});
    return sizes;
  }

  // Sums the gradient of a flattened tensor over the dimensions that were broadcast.
  Tensor unflat(const Tensor& grad, const Tensor& like) const {
    const Tensor whole = grad.reshape(with(like.size(-2), like.size(-1)));
    return at::sum_to(whole, like.sizes()).to(like.scalar_type());
  }
};

inline Tensor products(const Batches& in, bool cosine) {
  if (!cosine) return at::matmul(in.x, in.y.mT());
  return at::matmul(UnitRows(in.x).rows, UnitRows(in.y).rows.mT());
}

inline std::tuple<Tensor, Tensor> products_gradient(const Tensor& grad, const Batches& in,
                                                    bool cosine) {
  if (!cosine) return {at::matmul(grad, in.y), at::matmul(grad.mT(), in.x)};
  const UnitRows x(in.x), y(in.y);
  return {x.gradient(at::matmul(grad, y.rows)), y.gradient(at::matmul(grad.mT(), x.rows))};
}

}  // namespace itm
