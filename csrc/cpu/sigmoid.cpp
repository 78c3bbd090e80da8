// Sigmoid loss: the terms of every tile of logits are summed per text and the tile is discarded.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include "aten/unit_rows.h"
#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {
namespace {

// Adds the bias to a tile of scores. Logits of positives change sign, so that their loss is the
// same log(1 + e^logit) as that of negatives. Other pairs that share an id get the logit -inf,
// whose loss is 0.
template <typename T>
void to_logits(const Tile<T>& t, T bias, const SameId& same, const int64_t* positive_of) {
  parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
    for (T* s = t.row(r0); s < t.row(r1); ++s) *s += bias;
  });
  for_each_same_id(t, same, [&](int64_t r, int64_t c) {
    T& s = t.row(r)[c];
    const bool positive = !positive_of || positive_of[t.first_column + c] == t.first_row + r;
    // + 0 s turns an infinite positive score into NaN.
    s = positive ? -s + 0 * s : -std::numeric_limits<T>::infinity();
  });
}

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
    const auto& loop = loops<scalar_t>();
    const auto b = bias.item<scalar_t>();
    std::vector<double> sum(y.size(0));
    auto add = [&](const Tile<scalar_t>& t) {
      to_logits(t, b, same, positive_of);
      parallel_for(0, t.columns, grain(8 * t.rows), [&](int64_t c0, int64_t c1) {
        loop.column_softplus_sum(t.data, t.rows, t.columns, c0, c1, &sum[t.first_column]);
      });
    };
    for_each_tile<scalar_t>(x, y, scale.item<double>(), add, if_kept(kept));
    auto* out = loss.mutable_data_ptr<scalar_t>();
    std::copy(sum.begin(), sum.end(), out);
    // A text without exactly one image has no positive, and its loss must be NaN.
    for (int64_t j = 0; positive_of && j < y.size(0); ++j)
      if (positive_of[j] < 0) out[j] = std::numeric_limits<scalar_t>::quiet_NaN();
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
    const auto& loop = loops<scalar_t>();
    const auto* of_loss = g.const_data_ptr<scalar_t>();
    const auto b = bias.item<scalar_t>();
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      if (!scores.numel()) to_logits(t, b, same, positive_of);
      parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
        loop.sigmoid_weights(t.data, t.columns, r0, r1, of_loss + t.first_column);
      });
      for_each_same_id(t, same, [&](int64_t r, int64_t c) { t.row(r)[c] = -t.row(r)[c]; });
      grad_bias += at::from_blob(t.data, {t.rows * t.columns}, x.options())
                       .sum(at::kDouble)
                       .template item<double>();
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
