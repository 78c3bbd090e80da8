// Batched similarity matrices on CUDA. Products use ATen's matmul; distances are sums of
// differences, and their gradients need no memory that grows with N M D.

#include "cuda/distances/similarity_binding.h"

#include <ATen/ops/empty.h>

namespace itm::cuda {

Tensor distances_of(const OnDevice& device, Metric metric, const Tensor& x, const Tensor& y,
                    int64_t planned_rows) {
  const int64_t batch = x.size(0), N = x.size(1), M = y.size(1), D = x.size(2);
  const DistancePlan plan = plan_distances(batch, planned_rows ? planned_rows : N, M, D);
  Tensor out = at::empty({batch, N, M}, x.options());
  Tensor partial =
      at::empty({plan.parts > 1 ? plan.parts * out.numel() : 0}, x.options().dtype(wide_type(x)));
  distances(type_of(x), metric, matrix_of(x), matrix_of(y), batch, D, plan, out.mutable_data_ptr(),
            partial.mutable_data_ptr(), device.stream());
  device.check_launch();
  return out;
}

Tensor distance_gradient_of(const OnDevice& device, Metric metric, const Tensor& x, const Tensor& y,
                            const PairWeights& weights, int64_t columns) {
  Tensor out = at::empty(x.sizes(), x.options().dtype(wide_type(x)));
  distance_gradient(type_of(x), metric, matrix_of(x), matrix_of(y), weights, x.size(0), x.size(2),
                    out.mutable_data_ptr(), device.stream());
  device.check_launch();
  return out.narrow(2, 0, columns).contiguous();
}

namespace {

bool is_product(std::string_view metric) { return metric == "dot" || metric == "cosine"; }

Tensor similarity_forward(const Tensor& x, const Tensor& y, std::string_view metric) {
  const OnDevice device(x);
  Tensor out;
  if (is_product(metric)) {
    out = products(Batches(wide(x), wide(y)), metric == "cosine").to(x.scalar_type());
  } else {
    const Batches in(x, y);
    out = distances_of(device, metric_of(metric), pad_to_four(in.x), pad_to_four(in.y));
  }
  return out.reshape(Batches(x, y).with(x.size(-2), y.size(-2)));
}

std::tuple<Tensor, Tensor> of_distances(const OnDevice& device, const Tensor& grad,
                                        const Batches& in, std::string_view metric) {
  const int64_t D = in.x.size(2);
  const Tensor x = pad_to_four(in.x), y = pad_to_four(in.y);
  Tensor weight = grad;
  if (metric == "l2") {
    const Tensor distance = distances_of(device, Metric::kL2, x, y);
    // At distance 0 the gradient is 0, not 0 / 0.
    weight = weight.div(distance).masked_fill_(distance.eq(0), 0);
  }
  const Metric kind = metric == "l1" ? Metric::kL1 : Metric::kSquare;
  Tensor grad_x = distance_gradient_of(device, kind, x, y, dense(weight), D);
  Tensor grad_y = distance_gradient_of(device, kind, y, x, dense(weight.mT()), D);
  if (metric == "sqeuclidean") grad_x.mul_(2), grad_y.mul_(2);
  return {grad_x, grad_y};
}

std::tuple<Tensor, Tensor> similarity_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                               std::string_view metric) {
  const OnDevice device(x);
  // l1 and sqeuclidean read rows and gradient in their own type; the others divide or multiply in
  // fp32 or better.
  const bool direct = metric == "l1" || metric == "sqeuclidean";
  const Batches in(direct ? x : wide(x), direct ? y : wide(y));
  const Tensor g = direct ? grad : grad.to(wide_type(x));
  const Tensor flat = g.reshape({in.x.size(0), in.x.size(1), in.y.size(1)});
  const auto [grad_x, grad_y] = is_product(metric) ? products_gradient(flat, in, metric == "cosine")
                                                   : of_distances(device, flat, in, metric);
  return {in.unflat(grad_x, x), in.unflat(grad_y, y)};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("similarity_forward", similarity_forward);
  m.impl("similarity_backward", similarity_backward);
}

}  // namespace
}  // namespace itm::cuda
