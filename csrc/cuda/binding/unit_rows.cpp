// Rows scaled to length 1, on CUDA: one launch forward and one backward, whatever the strides.

#include "cuda/unit_rows.h"

#include <ATen/ops/empty.h>

#include "cuda/binding/device.h"

namespace itm::cuda {
namespace {

// [..., D] as one matrix; copied where its rows have no common stride.
Tensor flat(const Tensor& x) {
  return x.dim() == 2 ? x : x.reshape({x.numel() / x.size(-1), x.size(-1)});
}

std::tuple<Tensor, Tensor> unit_rows_forward(const Tensor& x) {  // [..., D]
  const OnDevice device(x);
  const Tensor from = flat(x);
  const auto like = x.options().dtype(wide_type(x));
  Tensor rows = at::empty(x.sizes(), like),
         length = at::empty(x.sizes().slice(0, x.dim() - 1), like);
  unit_rows(type_of(x), any_rows_of(from), from.size(1), rows.mutable_data_ptr(),
            length.mutable_data_ptr(), device.stream());
  device.launched();
  return {rows, length};
}

Tensor unit_rows_backward(const Tensor& grad, const Tensor& rows, const Tensor& length,
                          at::ScalarType type) {
  const OnDevice device(rows);
  const Tensor from = flat(grad.to(rows.scalar_type()));
  const Tensor unit = rows.contiguous(), lengths = length.contiguous();
  Tensor out = at::empty(rows.sizes(), rows.options().dtype(type));
  unit_rows_gradient(type_of(out), any_rows_of(from), from.size(1), unit.const_data_ptr(),
                     lengths.const_data_ptr(), out.mutable_data_ptr(), device.stream());
  device.launched();
  return out;
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("unit_rows_forward", unit_rows_forward);
  m.impl("unit_rows_backward", unit_rows_backward);
}

}  // namespace
}  // namespace itm::cuda
