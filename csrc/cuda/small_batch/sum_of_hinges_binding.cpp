// Sum of hinges of a small batch, on CUDA: four launches, two each way, for rows that need no copy.

#include "cuda/small_batch/score_gradient_binding.h"
#include "cuda/small_batch/sum_of_hinges.h"

namespace itm::cuda {
namespace {

std::tuple<Tensor, Tensor> sum_of_hinges_forward(const Tensor& image, const Tensor& text,
                                                 const OptionalTensor& positive,
                                                 const OptionalTensor& image_ids,
                                                 const OptionalTensor& text_ids, double margin,
                                                 bool keep_scores) {
  const OnDevice device(image);
  const StoredScores scores(device, image, text);
  const PairIds ids(positive, image_ids, text_ids);
  const Tensor kept = scores_to_keep(keep_scores, scores);
  Tensor loss = at::empty({text.size(0)}, scores.parts.options());
  sum_of_hinges(type_of(image), scores.from, ids.at(), margin, loss.mutable_data_ptr(),
                data_or_null(kept), device.stream());
  device.check_launch();
  return {loss, kept};
}

std::tuple<Tensor, Tensor> sum_of_hinges_backward(const Tensor& grad, const Tensor& scores,
                                                  const Tensor& image, const Tensor& text,
                                                  const OptionalTensor& positive,
                                                  const OptionalTensor& image_ids,
                                                  const OptionalTensor& text_ids, double margin) {
  const OnDevice device(image);
  const KeptScores kept(device, scores, image, text);
  const PairIds ids(positive, image_ids, text_ids);
  const RowGradient pair_grad(grad, image);
  const BothSides sides(image, text);
  sum_of_hinges_gradient(type_of(image), pair_grad.at(), kept.from, ids.at(), margin, sides.work(),
                         sides.rows(), device.stream());
  device.check_launch();
  return {sides.to_x, sides.to_y};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("sum_of_hinges_forward", sum_of_hinges_forward);
  m.impl("sum_of_hinges_backward", sum_of_hinges_backward);
}

}  // namespace
}  // namespace itm::cuda
