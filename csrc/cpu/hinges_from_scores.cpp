// Sum and max of hinges of given scores: a block of rows is reduced while it is in a cache.

#include <ATen/Dispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cpu/hinge_sums.h"
#include "cpu/max_of_hinges.h"
#include "cpu/score_blocks.h"

namespace itm::cpu {
namespace {

// The positive pairs of a score matrix.
struct PositivePairs {
  Tensor positive;
  SameId same;
  Groups by_image;

  PositivePairs(const Tensor& scores, const OptionalTensor& positive_of,
                const OptionalTensor& image_ids, const OptionalTensor& text_ids)
      : positive(positive_of.has_value()
                     ? positive_of->contiguous()
                     : at::arange(scores.size(1), scores.options().dtype(at::kLong))),
        same(image_ids, text_ids),
        by_image(of(), scores.size(1), scores.size(0)) {}

  const int64_t* of() const { return positive.const_data_ptr<int64_t>(); }

  // Returns margin - s+ of every pair, NaN for texts without exactly one image.
  template <typename T>
  std::vector<T> offsets(const Tensor& scores, double margin) const {
    const Tensor found = scores.gather(0, positive.clamp_min(0).unsqueeze(0))
                             .squeeze(0)
                             .to(wide_options(scores))
                             .contiguous();
    const T* s = found.const_data_ptr<T>();
    std::vector<T> offset(positive.size(0), std::numeric_limits<T>::quiet_NaN());
    for (size_t j = 0; j < offset.size(); ++j)
      if (of()[j] >= 0) offset[j] = static_cast<T>(margin) - s[j];
    return offset;
  }
};

Tensor sum_of_hinges_from_scores_forward(const Tensor& scores, const OptionalTensor& positive,
                                         const OptionalTensor& image_ids,
                                         const OptionalTensor& text_ids, double margin) {
  const PositivePairs pairs(scores, positive, image_ids, text_ids);
  Tensor loss = at::empty({scores.size(1)}, wide_options(scores));
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "sum_of_hinges_from_scores_forward", [&] {
    const auto offset = pairs.offsets<scalar_t>(scores, margin);
    std::vector<double> sum = first_sums(offset);
    for_each_score_block<scalar_t>(scores, 1, [&](const Tile<scalar_t>& t) {
      exclude(t, pairs.same);
      add_hinges(t, pairs.by_image, offset, sum);
    });
    std::copy(sum.begin(), sum.end(), loss.mutable_data_ptr<scalar_t>());
  });
  return loss;
}

// The loss says which pairs have a gradient of NaN.
Tensor sum_of_hinges_from_scores_backward(const Tensor& grad, const Tensor& loss,
                                          const Tensor& scores, const OptionalTensor& positive,
                                          const OptionalTensor& image_ids,
                                          const OptionalTensor& text_ids, double margin) {
  const PositivePairs pairs(scores, positive, image_ids, text_ids);
  const auto options = wide_options(scores);
  const Tensor g = grad.to(options).contiguous(), value = loss.to(options).contiguous();
  return AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "sum_of_hinges_from_scores_backward", [&] {
    const auto offset = pairs.offsets<scalar_t>(scores, margin);
    const auto* of_loss = g.const_data_ptr<scalar_t>();
    std::vector<double> active(offset.size());  // positive hinges of every pair
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      exclude(t, pairs.same);
      to_hinge_gradient(t, pairs.by_image, offset, of_loss, active);
    };
    Tensor found = gradient_of_score_blocks<scalar_t>(scores, 1, to_gradient);
    // Pairs that share an id have no weight yet.
    std::vector<scalar_t> of_positive = positive_gradients(active, of_loss);
    const auto* l = value.const_data_ptr<scalar_t>();
    for (size_t j = 0; j < of_positive.size(); ++j) {
      if (pairs.of()[j] < 0)
        of_positive[j] = 0;
      else if (l[j] != l[j])
        of_positive[j] = std::numeric_limits<scalar_t>::quiet_NaN();
    }
    const auto M = static_cast<int64_t>(of_positive.size());
    const Tensor values = at::from_blob(of_positive.data(), {1, M}, options);
    found.scatter_add_(0, pairs.positive.clamp_min(0).unsqueeze(0), values.to(found.scalar_type()));
    return found;
  });
}

std::tuple<Tensor, Tensor, Tensor> max_of_hinges_from_scores_forward(
    const Tensor& scores, const OptionalTensor& positive, const OptionalTensor& image_ids,
    const OptionalTensor& text_ids, double margin, bool is_semihard) {
  const PositivePairs pairs(scores, positive, image_ids, text_ids);
  HardestNegatives found(scores.size(0), scores.size(1), wide_options(scores));
  const auto dtype = found.positive.scalar_type();
  return AT_DISPATCH_FLOATING_TYPES(dtype, "max_of_hinges_from_scores_forward", [&] {
    const auto blocks = [&](auto&& visit) { for_each_score_block<scalar_t>(scores, 1, visit); };
    if (is_semihard)
      find_semihard<scalar_t>(found, pairs.of(), pairs.same, blocks);
    else
      find_hardest<scalar_t>(found, pairs.of(), pairs.same, blocks);
    return hinges_of<scalar_t>(found, is_semihard ? nullptr : pairs.of(), margin);
  });
}

Tensor max_of_hinges_from_scores_backward(const Tensor& grad, const OptionalTensor& positive,
                                          const Tensor& text_index, const Tensor& image_index,
                                          int64_t N, at::ScalarType dtype) {
  const int64_t M = grad.size(0);
  const Tensor g = grad.to(at::kDouble).contiguous();
  const Tensor own = positive.has_value() ? positive->contiguous() : Tensor();
  const int64_t* of = own.defined() ? own.const_data_ptr<int64_t>() : nullptr;
  const auto* of_loss = g.const_data_ptr<double>();
  const auto* hardest_text = text_index.const_data_ptr<int64_t>();
  const auto* hardest_image = image_index.const_data_ptr<int64_t>();
  Tensor found = at::zeros({N, M}, grad.options().dtype(dtype));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "max_of_hinges_from_scores_backward", [&] {
        auto* out = found.mutable_data_ptr<scalar_t>();
        const auto add = [&](int64_t i, int64_t j, double weight) {
          out[i * M + j] = static_cast<scalar_t>(static_cast<double>(out[i * M + j]) + weight);
        };
        for (int64_t j = 0; j < M; ++j) {
          const int64_t i = of ? of[j] : j;
          const bool nan = hardest_text[j] == kNan;
          const int active = (hardest_text[j] >= 0) + (hardest_image[j] >= 0);
          if (!(active || nan) || i < 0) continue;
          if (hardest_text[j] >= 0) add(i, hardest_text[j], of_loss[j]);
          if (hardest_image[j] >= 0) add(hardest_image[j], j, of_loss[j]);
          add(i, j, nan ? std::numeric_limits<double>::quiet_NaN() : -of_loss[j] * active);
        }
      });
  return found;
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("sum_of_hinges_from_scores_forward", sum_of_hinges_from_scores_forward);
  m.impl("sum_of_hinges_from_scores_backward", sum_of_hinges_from_scores_backward);
  m.impl("max_of_hinges_from_scores_forward", max_of_hinges_from_scores_forward);
  m.impl("max_of_hinges_from_scores_backward", max_of_hinges_from_scores_backward);
}

}  // namespace
}  // namespace itm::cpu
