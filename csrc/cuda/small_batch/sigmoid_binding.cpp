// Sigmoid loss of a small batch, on CUDA: four launches, two forward and two backward, for rows
// that need no copy. Scale and bias stay on the device.

#include "aten/unit_rows.h"
#include "cuda/small_batch/score_gradient_binding.h"
#include "cuda/small_batch/sigmoid.h"

namespace itm::cuda {
namespace {

std::tuple<Tensor, Tensor> sigmoid_forward(const Tensor& image, const Tensor& text,
                                           const Tensor& scale, const Tensor& bias,
                                           const OptionalTensor& positive,
                                           const OptionalTensor& image_ids,
                                           const OptionalTensor& text_ids, bool keep_scores,
                                           bool cosine) {
  refuse_cosine(cosine);
  const OnDevice device(image);
  const StoredScores scores(device, image, text);
  const PairIds ids(positive, image_ids, text_ids);
  const Tensor factor = scale.to(wide_type(image)), offset = bias.to(wide_type(image));
  const Tensor kept = scores_to_keep(keep_scores, scores);
  Tensor loss = at::empty({text.size(0)}, scores.parts.options());
  sigmoid(type_of(image), scores.from, ids.at(), factor.const_data_ptr(), offset.const_data_ptr(),
          loss.mutable_data_ptr(), data_or_null(kept), device.stream());
  device.check_launch();
  return {loss, kept};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_backward(
    const Tensor& grad, const Tensor& scores, const Tensor& image, const Tensor& text,
    const Tensor& scale, const Tensor& bias, const OptionalTensor& positive,
    const OptionalTensor& image_ids, const OptionalTensor& text_ids, bool cosine) {
  refuse_cosine(cosine);
  const OnDevice device(image);
  const KeptScores kept(device, scores, image, text);
  const PairIds ids(positive, image_ids, text_ids);
  const RowGradient pair_grad(grad, image);
  const Tensor factor = scale.to(wide_type(image)), offset = bias.to(wide_type(image));
  const BothSides sides(image, text);
  Tensor grad_scale = at::empty({}, factor.options()), grad_bias = at::empty({}, offset.options());
  sigmoid_gradient(type_of(image), pair_grad.at(), kept.from, ids.at(), factor.const_data_ptr(),
                   offset.const_data_ptr(), sides.work(), sides.rows(),
                   grad_scale.mutable_data_ptr(), grad_bias.mutable_data_ptr(), device.stream());
  device.check_launch();
  return {sides.to_x, sides.to_y, grad_scale.to(scale.scalar_type()),
          grad_bias.to(bias.scalar_type())};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("sigmoid_forward", sigmoid_forward);
  m.impl("sigmoid_backward", sigmoid_backward);
}

}  // namespace
}  // namespace itm::cuda
