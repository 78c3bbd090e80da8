// InfoNCE of a small batch as one operator, on CUDA: dot products and norms, a reduction with the
// total, and the gradient of the raw rows. Three launches for rows that need no copy.

#include "cuda/small_batch/contrastive_binding.h"
#include "cuda/small_batch/info_nce.h"

namespace itm::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_total_forward(
    const Tensor& image, const Tensor& text, const OptionalTensor& scale, double fixed_scale,
    const OptionalTensor& positive, const OptionalTensor& image_ids, const OptionalTensor& text_ids,
    double weight, bool cosine, bool keep_scores) {
  const OnDevice device(image);
  const StoredCosines cosines(device, image, text, cosine);
  const PairIds ids(positive, image_ids, text_ids);
  const ScalarTensor factor(scale, fixed_scale, image);
  const ContrastiveTensors found(cosines, weight, keep_scores, 4);
  info_nce(type_of(image), cosines.from(), ids.at(), factor.at(), found.to, device.stream());
  device.check_launch();
  return {found.total, found.scores, found.anchors, found.of_scale};
}

std::tuple<Tensor, Tensor, Tensor> info_nce_total_backward(
    const Tensor& grad, const Tensor& scores, const Tensor& anchors, const Tensor& of_scale,
    const Tensor& image, const Tensor& text, const OptionalTensor& scale, double fixed_scale,
    const OptionalTensor& positive, const OptionalTensor& image_ids, const OptionalTensor& text_ids,
    double weight, bool cosine) {
  const OnDevice device(image);
  const PairIds ids(positive, image_ids, text_ids);
  const ScalarTensor factor(scale, fixed_scale, image);
  const ContrastiveOperands rows(grad, scores, anchors, image, text);
  info_nce_gradient(type_of(image), ids.at(), factor.at(),
                    rows.from(of_scale, of_scale, weight, cosine), device.stream());
  device.check_launch();
  return {rows.to_x, rows.to_y, rows.to_scale};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("info_nce_total_forward", info_nce_total_forward);
  m.impl("info_nce_total_backward", info_nce_total_backward);
}

}  // namespace
}  // namespace itm::cuda
