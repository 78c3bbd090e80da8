// Sigmoid loss: the terms of every tile of logits are summed per text and the tile is discarded.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include "aten/unit_rows.h"
#include "cpu/logistic.h"

namespace itm::cpu {
namespace {

std::tuple<Tensor, Tensor> sigmoid_forward(const Tensor& image, const Tensor& text,
                                           const Tensor& scale, const Tensor& bias,
                                           const OptionalTensor& positive,
                                           const OptionalTensor& image_ids,
                                           const OptionalTensor& text_ids, bool keep_scores,
                                           bool cosine) {
  refuse_cosine(cosine);
  const Tensor x = wide(image), y = wide(text), kept = scores_to_keep(keep_scores, x, y);
  const SameId same(image_ids, text_ids);
  const int64_t* positive_of = ids_or_null(positive);
  Tensor loss = at::empty({y.size(0)}, y.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sigmoid_forward", [&] {
    const auto b = bias.item<scalar_t>();
    std::vector<double> sum(y.size(0));
    auto add = [&](const Tile<scalar_t>& t) {
      to_logits(t, b, same, positive_of);
      add_softplus(t, sum);
    };
    for_each_tile<scalar_t>(x, y, scale.item<double>(), add, if_kept(kept));
    store_sums(sum, positive_of, loss.mutable_data_ptr<scalar_t>());
  });
  return {loss, kept};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_backward(
    const Tensor& grad, const Tensor& scores, const Tensor& image, const Tensor& text,
    const Tensor& scale, const Tensor& bias, const OptionalTensor& positive,
    const OptionalTensor& image_ids, const OptionalTensor& text_ids, bool cosine) {
  refuse_cosine(cosine);
  const Tensor x = wide(image), y = wide(text), g = grad.to(x.scalar_type()).contiguous();
  const SameId same(image_ids, text_ids);
  const int64_t* positive_of = ids_or_null(positive);
  const double alpha = scale.item<double>();
  Tensor grad_x, grad_y;
  double grad_bias = 0, grad_scale = 0;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sigmoid_backward", [&] {
    const auto* of_loss = g.const_data_ptr<scalar_t>();
    const auto b = bias.item<scalar_t>();
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      if (!scores.numel()) to_logits(t, b, same, positive_of);
      grad_bias += to_sigmoid_gradient(t, same, of_loss);
    };
    std::tie(grad_x, grad_y) = tiled_products_gradient<scalar_t>(x, y, alpha, scores, to_gradient);
    grad_scale = inner_product<scalar_t>(grad_x, x);
  });
  return {grad_x.mul_(alpha).to(image.scalar_type()), grad_y.mul_(alpha).to(text.scalar_type()),
          at::scalar_tensor(grad_scale, scale.options()), at::full({}, grad_bias, bias.options())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("sigmoid_forward", sigmoid_forward);
  m.impl("sigmoid_backward", sigmoid_backward);
}

}  // namespace
}  // namespace itm::cpu
