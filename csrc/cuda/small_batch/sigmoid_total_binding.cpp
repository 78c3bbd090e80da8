// The sigmoid loss of a small batch as one operator, on CUDA: dot products and norms, a reduction
// with the total, and the gradient of the raw rows. Three launches for rows that need no copy.

#include "cuda/small_batch/contrastive_binding.h"
#include "cuda/small_batch/sigmoid_total.h"

namespace itm::cuda {
namespace {

using Parts = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Parts sigmoid_total_forward(const Tensor& image, const Tensor& text, const OptionalTensor& scale,
                            double fixed_scale, const OptionalTensor& bias, double fixed_bias,
                            const OptionalTensor& positive, const OptionalTensor& image_ids,
                            const OptionalTensor& text_ids, double weight, bool cosine,
                            bool gradients, bool keep_scores) {
  TORCH_CHECK(
      !gradients,
      "itm_kernels: native kernels compute gradients from kept scores; pass gradients=False");
  const OnDevice device(image);
  const StoredCosines cosines(device, image, text, cosine);
  const PairIds ids(positive, image_ids, text_ids);
  const ScalarTensor factor(scale, fixed_scale, image), offset(bias, fixed_bias, image);
  const ContrastiveTensors found(cosines, weight, keep_scores, 1);
  sigmoid_total(type_of(image), cosines.from(), ids.at(), factor.at(), offset.at(), found.to,
                device.stream());
  device.check_launch();
  const auto none = [&](const Tensor& rows) {
    return at::empty({0, rows.size(1)}, found.total.options());
  };
  const Tensor unit = at::empty({0}, found.total.options());
  return {found.total,
          none(image),
          none(text),
          found.of_scale,
          found.of_bias,
          found.scores,
          found.anchors.narrow(0, 0, keep_scores ? found.anchors.size(0) : 0),
          unit};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_total_backward(
    const Tensor& grad, const Tensor&, const Tensor&, const Tensor& of_scale, const Tensor& of_bias,
    const Tensor& scores, const Tensor& inverses, const Tensor&, const Tensor& image,
    const Tensor& text, const OptionalTensor& scale, double fixed_scale, const OptionalTensor& bias,
    double fixed_bias, const OptionalTensor& positive, const OptionalTensor& image_ids,
    const OptionalTensor& text_ids, double weight, bool cosine) {
  const OnDevice device(image);
  const PairIds ids(positive, image_ids, text_ids);
  const ScalarTensor factor(scale, fixed_scale, image), offset(bias, fixed_bias, image);
  const ContrastiveOperands rows(grad, scores, inverses, image, text);
  sigmoid_total_gradient(type_of(image), ids.at(), factor.at(), offset.at(),
                         rows.from(of_scale, of_bias, weight, cosine), device.stream());
  device.check_launch();
  return {rows.to_x, rows.to_y, rows.to_scale, rows.to_bias};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("sigmoid_total_forward", sigmoid_total_forward);
  m.impl("sigmoid_total_backward", sigmoid_total_backward);
}

}  // namespace
}  // namespace itm::cuda
