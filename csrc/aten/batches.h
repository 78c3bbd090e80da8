#pragma once
// Two batches of rows whose batch dimensions broadcast, and the gradients of their products.

#include <ATen/ExpandUtils.h>
#include <ATen/ops/matmul.h>

#include "cpu/distances.h"

namespace itm {

// x [B, N, D] and y [B, M, D], batch dimensions broadcast and flattened.
struct Batches {
  std::vector<int64_t> shape;  // of the batch
  Tensor x, y;

  Batches(const Tensor& left, const Tensor& right)
      : shape(at::infer_size(left.sizes().slice(0, left.dim() - 2),
                             right.sizes().slice(0, right.dim() - 2))),
        x(flat(left)),
        y(flat(right)) {}

  Tensor flat(const Tensor& t) const {
    return t.expand(with(t.size(-2), t.size(-1))).reshape({-1, t.size(-2), t.size(-1)});
  }

  // The sizes of a batch of matrices.
  std::vector<int64_t> with(int64_t rows, int64_t columns) const {
    std::vector<int64_t> sizes = shape;
    sizes.insert(sizes.end(), {rows, columns});
    return sizes;
  }

  // The gradient of a tensor that was broadcast: summed over what it was repeated for.
  Tensor unflat(const Tensor& grad, const Tensor& like) const {
    const Tensor whole = grad.reshape(with(like.size(-2), like.size(-1)));
    return at::sum_to(whole, like.sizes()).to(like.scalar_type());
  }
};

inline Tensor products(const Batches& in, bool cosine) {
  if (!cosine) return at::matmul(in.x, in.y.mT());
  return at::matmul(UnitRows(in.x).rows, UnitRows(in.y).rows.mT());
}

inline std::tuple<Tensor, Tensor> of_products(const Tensor& grad, const Batches& in, bool cosine) {
  if (!cosine) return {at::matmul(grad, in.y), at::matmul(grad.mT(), in.x)};
  const UnitRows x(in.x), y(in.y);
  return {x.gradient(at::matmul(grad, y.rows)), y.gradient(at::matmul(grad.mT(), x.rows))};
}

}  // namespace itm
