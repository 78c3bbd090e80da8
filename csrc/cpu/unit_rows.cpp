// Rows normalised to norm 1: one pass over the rows forward, one over rows and gradient backward.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "aten/wide.h"
#include "cpu/instruction_set.h"
#include "cpu/parallel.h"

namespace itm::cpu {
namespace {

std::tuple<Tensor, Tensor> unit_rows_forward(const Tensor& x) {  // [..., D]
  const Tensor from = wide(x);
  Tensor rows = at::empty_like(from),
         norm = at::empty(x.sizes().slice(0, x.dim() - 1), from.options());
  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "unit_rows_forward", [&] {
    const auto& loop = loops<scalar_t>();
    const int64_t D = x.size(-1);
    const auto* source = from.const_data_ptr<scalar_t>();
    auto *to = rows.mutable_data_ptr<scalar_t>(), *norms = norm.mutable_data_ptr<scalar_t>();
    parallel_for(0, norm.numel(), grain(2 * D), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) norms[n] = loop.unit_row(source + n * D, to + n * D, D);
    });
  });
  return {rows, norm};
}

Tensor unit_rows_backward(const Tensor& grad, const Tensor& rows, const Tensor& norm,
                          at::ScalarType type) {
  const Tensor from = grad.to(rows.scalar_type()).contiguous();
  Tensor out = at::empty_like(rows);
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "unit_rows_backward", [&] {
    const auto& loop = loops<scalar_t>();
    const int64_t D = rows.size(-1);
    const auto *source = from.const_data_ptr<scalar_t>(), *unit = rows.const_data_ptr<scalar_t>();
    const auto* norms = norm.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    parallel_for(0, norm.numel(), grain(2 * D), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        loop.unit_gradient(source + n * D, unit + n * D, norms[n], to + n * D, D);
    });
  });
  return out.to(type);
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("unit_rows_forward", unit_rows_forward);
  m.impl("unit_rows_backward", unit_rows_backward);
}

}  // namespace
}  // namespace itm::cpu
