// Sigmoid loss of given scores: a block of rows is reduced while it is in a cache.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include "cpu/logistic.h"
#include "cpu/score_blocks.h"

namespace itm::cpu {
namespace {

Tensor sigmoid_from_scores_forward(const Tensor& scores, const Tensor& scale, const Tensor& bias,
                                   const OptionalTensor& positive, const OptionalTensor& image_ids,
                                   const OptionalTensor& text_ids) {
  const SameId same(image_ids, text_ids);
  const int64_t* positive_of = ids_or_null(positive);
  Tensor loss = at::empty({scores.size(1)}, wide_options(scores));
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "sigmoid_from_scores_forward", [&] {
    const auto b = bias.item<scalar_t>();
    std::vector<double> sum(scores.size(1));
    for_each_score_block<scalar_t>(scores, scale.item<double>(), [&](const Tile<scalar_t>& t) {
      to_logits(t, b, same, positive_of);
      add_softplus(t, sum);
    });
    store_sums(sum, positive_of, loss.mutable_data_ptr<scalar_t>());
  });
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> sigmoid_from_scores_backward(
    const Tensor& grad, const Tensor& scores, const Tensor& scale, const Tensor& bias,
    const OptionalTensor& positive, const OptionalTensor& image_ids,
    const OptionalTensor& text_ids) {
  const SameId same(image_ids, text_ids);
  const int64_t* positive_of = ids_or_null(positive);
  const Tensor g = grad.to(wide_options(scores)).contiguous();
  Tensor grad_scores;
  double grad_scale = 0, grad_bias = 0;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "sigmoid_from_scores_backward", [&] {
    const auto b = bias.item<scalar_t>();
    const auto* of_loss = g.const_data_ptr<scalar_t>();
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      to_logits(t, b, same, positive_of);
      grad_bias += to_sigmoid_gradient(t, same, of_loss);
      grad_scale += weighted_sum(t, scores, same, positive_of);
    };
    grad_scores = gradient_of_score_blocks<scalar_t>(scores, scale.item<double>(), to_gradient);
  });
  return {grad_scores, at::scalar_tensor(grad_scale, scale.options()),
          at::full({}, grad_bias, bias.options())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("sigmoid_from_scores_forward", sigmoid_from_scores_forward);
  m.impl("sigmoid_from_scores_backward", sigmoid_from_scores_backward);
}

}  // namespace
}  // namespace itm::cpu
