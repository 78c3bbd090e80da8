// Max of hinges and hardest negatives of a small batch, on CUDA: dot products, maxima with their
// total, and a gather backward. Three launches for rows that need no copy.

#include "cuda/small_batch/dot_products_binding.h"
#include "cuda/small_batch/max_of_hinges.h"

namespace itm::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> max_of_hinges_forward(const Tensor& image, const Tensor& text,
                                                         const OptionalTensor& positive,
                                                         const OptionalTensor& image_ids,
                                                         const OptionalTensor& text_ids,
                                                         double margin, bool semihard) {
  const OnDevice device(image);
  const StoredScores scores(device, image, text);
  const PairIds ids(positive, image_ids, text_ids);
  const int64_t M = text.size(0);
  Tensor loss = at::empty({M}, scores.parts.options());
  Tensor text_index = at::empty({M}, loss.options().dtype(at::kLong));
  Tensor image_index = at::empty({M}, text_index.options());
  max_of_hinges(type_of(image), scores.from, ids.at(), margin, semihard, loss.mutable_data_ptr(),
                text_index.mutable_data_ptr<int64_t>(), image_index.mutable_data_ptr<int64_t>(), {},
                device.stream());
  device.check_launch();
  return {loss, text_index, image_index};
}

// The sum over all pairs, times a weight.
std::tuple<Tensor, Tensor, Tensor> max_of_hinges_total_forward(
    const Tensor& image, const Tensor& text, const OptionalTensor& positive,
    const OptionalTensor& image_ids, const OptionalTensor& text_ids, double margin, bool semihard,
    double weight) {
  const OnDevice device(image);
  const Tensor x = pad_to_four(image.unsqueeze(0)), y = pad_to_four(text.unsqueeze(0));
  const StoredDotProducts scores(device, {{x, y}});
  const PairIds ids(positive, image_ids, text_ids);
  const int64_t M = text.size(0);
  Tensor loss = at::empty({M}, scores.parts[0].options()), total = at::empty({}, loss.options());
  Tensor text_index = at::empty({M}, loss.options().dtype(at::kLong));
  Tensor image_index = at::empty({M}, text_index.options());
  max_of_hinges(type_of(image), scores.from[0], ids.at(), margin, semihard, loss.mutable_data_ptr(),
                text_index.mutable_data_ptr<int64_t>(), image_index.mutable_data_ptr<int64_t>(),
                {weight, scores.counter(), total.mutable_data_ptr()}, device.stream());
  device.check_launch();
  return {total, text_index, image_index};
}

// Allocates the gradients of both sides and passes them to `launch`.
template <typename Launch>
std::tuple<Tensor, Tensor> gathered(const Tensor& image, const Tensor& text, Launch&& launch) {
  const OnDevice device(image);
  Tensor to_image = at::empty(image.sizes(), image.options());
  Tensor to_text = at::empty(text.sizes(), text.options());
  const RowGradients rows{any_rows_of(image), any_rows_of(text), image.size(1),
                          to_image.mutable_data_ptr(), to_text.mutable_data_ptr()};
  launch(rows, device.stream());
  device.check_launch();
  return {to_image, to_text};
}

std::tuple<Tensor, Tensor> max_of_hinges_backward(const Tensor& grad, const Tensor& image,
                                                  const Tensor& text,
                                                  const OptionalTensor& positive,
                                                  const Tensor& text_index,
                                                  const Tensor& image_index) {
  const RowGradient pair_grad(grad, image);
  const OptionalTensor own = PairIds::contiguous(positive);
  return gathered(image, text, [&](const RowGradients& rows, void* stream) {
    max_of_hinges_gradient(type_of(image), {pair_grad.at()}, ids_or_null(own),
                           text_index.const_data_ptr<int64_t>(),
                           image_index.const_data_ptr<int64_t>(), rows, stream);
  });
}

std::tuple<Tensor, Tensor> max_of_hinges_total_backward(const Tensor& grad, const Tensor& image,
                                                        const Tensor& text,
                                                        const OptionalTensor& positive,
                                                        const Tensor& text_index,
                                                        const Tensor& image_index, double weight) {
  const Tensor pair_grad = grad.to(wide_type(image));
  const OptionalTensor own = PairIds::contiguous(positive);
  return gathered(image, text, [&](const RowGradients& rows, void* stream) {
    max_of_hinges_gradient(type_of(image), {{pair_grad.const_data_ptr(), 0}, weight, true},
                           ids_or_null(own), text_index.const_data_ptr<int64_t>(),
                           image_index.const_data_ptr<int64_t>(), rows, stream);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> hardest_negatives_forward(
    const Tensor& image, const Tensor& text, const OptionalTensor& positive,
    const OptionalTensor& image_ids, const OptionalTensor& text_ids) {
  const OnDevice device(image);
  const StoredScores scores(device, image, text);
  const PairIds ids(positive, image_ids, text_ids);
  const auto like = scores.parts.options();
  const int64_t N = image.size(0), M = text.size(0);
  Tensor own = at::empty({M}, like), text_score = at::empty({N}, like);
  Tensor image_score = at::empty({M}, like);
  Tensor text_index = at::empty({N}, like.dtype(at::kLong));
  Tensor image_index = at::empty({M}, like.dtype(at::kLong));
  hardest_negatives(type_of(image), scores.from, ids.at(),
                    {own.mutable_data_ptr(), text_score.mutable_data_ptr(),
                     text_index.mutable_data_ptr<int64_t>(), image_score.mutable_data_ptr(),
                     image_index.mutable_data_ptr<int64_t>()},
                    device.stream());
  device.check_launch();
  return {own, text_score, text_index, image_score, image_index};
}

std::tuple<Tensor, Tensor> hardest_negatives_backward(
    const Tensor& grad_positive, const Tensor& grad_text, const Tensor& grad_image,
    const Tensor& image, const Tensor& text, const OptionalTensor& positive,
    const Tensor& text_index, const Tensor& image_index) {
  const RowGradient of_positive(grad_positive, image), of_text(grad_text, image);
  const RowGradient of_image(grad_image, image);
  const OptionalTensor own = PairIds::contiguous(positive);
  return gathered(image, text, [&](const RowGradients& rows, void* stream) {
    hardest_negatives_gradient(type_of(image), of_positive.at(), of_text.at(), of_image.at(),
                               ids_or_null(own), text_index.const_data_ptr<int64_t>(),
                               image_index.const_data_ptr<int64_t>(), rows, stream);
  });
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("max_of_hinges_forward", max_of_hinges_forward);
  m.impl("max_of_hinges_backward", max_of_hinges_backward);
  m.impl("max_of_hinges_total_forward", max_of_hinges_total_forward);
  m.impl("max_of_hinges_total_backward", max_of_hinges_total_backward);
  m.impl("hardest_negatives_forward", hardest_negatives_forward);
  m.impl("hardest_negatives_backward", hardest_negatives_backward);
}

}  // namespace
}  // namespace itm::cuda
