// Batched similarity matrices. Products call the BLAS library. Distances are computed from direct
// differences in loops of our own, because the library's expanded form suffers cancellation and its
// direct form is slow.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <string_view>

#include "aten/batches.h"
#include "cpu/distances.h"
#include "cpu/huge_pages.h"

namespace itm::cpu {
namespace {

Tensor similarity_forward(const Tensor& x, const Tensor& y, std::string_view metric) {
  const Batches in(wide(x), wide(y));
  const int64_t batches = in.x.size(0), N = in.x.size(1), M = in.y.size(1);
  Tensor out;
  if (metric == "dot" || metric == "cosine") {
    out = products(in, metric == "cosine");
  } else {
    out = empty_in_huge_pages({batches, N, M}, in.x.options());
    AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "similarity_forward", [&] {
      for (int64_t b = 0; b < batches; ++b) {
        Tensor matrix = out[b];
        distances<scalar_t>(in.x[b], in.y[b], metric != "l1", matrix);
      }
    });
    if (metric == "l2") out.sqrt_();
  }
  return out.reshape(in.with(N, M)).to(x.scalar_type());
}

std::tuple<Tensor, Tensor> distances_gradient(const Tensor& grad, const Batches& in,
                                              std::string_view metric) {
  Tensor grad_x = at::zeros_like(in.x), grad_y = at::zeros_like(in.y);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "similarity_backward", [&] {
    for (int64_t b = 0; b < in.x.size(0); ++b) {
      const Tensor x = in.x[b], y = in.y[b];
      Tensor weight = grad[b].contiguous();
      if (metric == "sqeuclidean") weight = weight.mul(2);
      if (metric == "l2") {
        Tensor distance = at::empty({x.size(0), y.size(0)}, x.options());
        distances<scalar_t>(x, y, true, distance);
        // The gradient is 0 at distance 0, where the quotient is 0 / 0.
        weight = weight.div(distance.sqrt_()).masked_fill_(distance.eq(0), 0);
      }
      Tensor to_x = grad_x[b], to_y = grad_y[b];
      if (metric == "l1") {
        add_signs<scalar_t>(weight, x, y, to_x, &to_y);
      } else {
        add_differences<scalar_t>(weight, x, y, to_x);
        add_differences<scalar_t>(weight.t().contiguous(), y, x, to_y);
      }
    }
  });
  return {grad_x, grad_y};
}

std::tuple<Tensor, Tensor> similarity_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                               std::string_view metric) {
  const Batches in(wide(x), wide(y));
  const Tensor g = wide(grad).reshape({-1, in.x.size(1), in.y.size(1)});
  const bool product = metric == "dot" || metric == "cosine";
  const auto [grad_x, grad_y] =
      product ? products_gradient(g, in, metric == "cosine") : distances_gradient(g, in, metric);
  return {in.unflat(grad_x, x), in.unflat(grad_y, y)};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("similarity_forward", similarity_forward);
  m.impl("similarity_backward", similarity_backward);
}

}  // namespace
}  // namespace itm::cpu
