// The max of hinges with a band over the cosines of both sides as one operator, for a small batch
// on CUDA: dot products of three pairs of matrices, one reduction, and one launch backward.

#include "cuda/small_batch/dot_products_binding.h"
#include "cuda/small_batch/imc.h"

namespace itm::cuda {
namespace {

uint32_t* mask_words(const Tensor& mask) {
  return reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<int32_t>());
}

// total, text_index, image_index, hardest_text, violations, image_mask, text_mask
using ImcResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ImcResult imc_total_forward(const Tensor& image, const Tensor& text, const OptionalTensor& positive,
                            const OptionalTensor& image_ids, const OptionalTensor& text_ids,
                            double margin, double lower, double upper, double weight) {
  const OnDevice device(image);
  const Tensor x = pad_to_four(image.unsqueeze(0)), y = pad_to_four(text.unsqueeze(0));
  const StoredDotProducts scores(device, {{x, y}, {x, x}, {y, y}});
  const PairIds ids(positive, image_ids, text_ids);
  const int64_t N = image.size(0), M = text.size(0);
  const auto like = scores.parts[0].options(), index = like.dtype(at::kLong);
  Tensor total = at::empty({}, like), values = at::empty({M + N + M}, like);
  Tensor text_index = at::empty({M}, index), image_index = at::empty({M}, index);
  Tensor hardest_text = at::empty({N}, like.dtype(at::kInt)), violations = at::empty({N}, like);
  Tensor image_mask = at::empty({N, (N + 31) / 32}, hardest_text.options());
  Tensor text_mask = at::empty({M, (M + 31) / 32}, hardest_text.options());
  const auto band = [&](int product, const OptionalTensor& own, const Tensor& mask) {
    return ImcBand{scores.from[product], ids_or_null(own), mask_words(mask), mask.size(1),
                   weight / static_cast<double>(mask.size(0))};
  };
  imc(type_of(image),
      {.scores = scores.from[0],
       .pairing = ids.at(),
       .image = band(1, ids.image, image_mask),
       .text = band(2, ids.text, text_mask),
       .margin = margin,
       .low = upper,
       .high = 1 - lower,
       .text_index = text_index.mutable_data_ptr<int64_t>(),
       .image_index = image_index.mutable_data_ptr<int64_t>(),
       .hardest_text = hardest_text.mutable_data_ptr<int32_t>(),
       .violations = violations.mutable_data_ptr(),
       .values = values.mutable_data_ptr(),
       .total = {1, scores.counter(), total.mutable_data_ptr()}},
      device.stream());
  device.check_launch();
  return {total, text_index, image_index, hardest_text, violations, image_mask, text_mask};
}

std::tuple<Tensor, Tensor> imc_total_backward(const Tensor& grad, const Tensor& image,
                                              const Tensor& text, const OptionalTensor& positive,
                                              const Tensor& text_index, const Tensor& image_index,
                                              const Tensor& hardest_text, const Tensor& violations,
                                              const Tensor& image_mask, const Tensor& text_mask,
                                              double weight) {
  const OnDevice device(image);
  const Tensor x = pad_to_four(image.unsqueeze(0)), y = pad_to_four(text.unsqueeze(0));
  const Tensor pair_grad = grad.to(wide_type(image));
  const OptionalTensor own = PairIds::contiguous(positive);
  const Tensor texts = text_index.contiguous(), images = image_index.contiguous();
  const Tensor hardest = hardest_text.contiguous(), counts = violations.contiguous();
  const Tensor image_bits = image_mask.contiguous(), text_bits = text_mask.contiguous();
  Tensor to_image = at::empty(image.sizes(), image.options());
  Tensor to_text = at::empty(text.sizes(), text.options());
  const auto band = [&](const Tensor& mask) {
    return ImcBand{
        {}, nullptr, mask_words(mask), mask.size(1), weight / static_cast<double>(mask.size(0))};
  };
  imc_gradient(type_of(image),
               {.scores = {},
                .pairing = {ids_or_null(own), nullptr, nullptr},
                .image = band(image_bits),
                .text = band(text_bits),
                .margin = 0,
                .low = 0,
                .high = 0,
                .text_index = texts.mutable_data_ptr<int64_t>(),
                .image_index = images.mutable_data_ptr<int64_t>(),
                .hardest_text = hardest.mutable_data_ptr<int32_t>(),
                .violations = counts.mutable_data_ptr(),
                .values = nullptr,
                .total = {}},
               pair_grad.const_data_ptr(),
               {matrix_of(x), matrix_of(y), image.size(1), to_image.mutable_data_ptr(),
                to_text.mutable_data_ptr()},
               device.stream());
  device.check_launch();
  return {to_image, to_text};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("imc_total_forward", imc_total_forward);
  m.impl("imc_total_backward", imc_total_backward);
}

}  // namespace
}  // namespace itm::cuda
