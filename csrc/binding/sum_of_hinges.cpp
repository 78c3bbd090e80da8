// Sum of hinges: every tile of scores is summed per pair and forgotten.

#include <ATen/Dispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "binding/common.h"
#include "binding/pairs.h"

namespace itm {
namespace {

// The operator's inputs, ready for the loops.
struct Inputs {
  Tensor x, y, positive, matched, score;  // matched [M, D]: the image row of every pair
  SameId same;
  Groups pairs;  // pairs of every image

  Inputs(const Tensor& image, const Tensor& text, const OptionalTensor& positive_of,
         const OptionalTensor& image_ids, const OptionalTensor& text_ids)
      : x(wide(image)),
        y(wide(text)),
        positive(positive_of.has_value() ? positive_of->contiguous()
                                         : at::arange(y.size(0), y.options().dtype(at::kLong))),
        matched(positive_of.has_value() ? x.index_select(0, positive.clamp_min(0)) : x),
        // A text without exactly one image is a mistake that shows as NaN.
        score(matched.mul(y).sum(1).masked_fill_(positive.lt(0),
                                                 std::numeric_limits<double>::quiet_NaN())),
        same(image_ids, text_ids),
        pairs(positive.const_data_ptr<int64_t>(), y.size(0), x.size(0)) {}
};

std::tuple<Tensor, Tensor> sum_of_hinges_forward(const Tensor& image, const Tensor& text,
                                                 const OptionalTensor& positive,
                                                 const OptionalTensor& image_ids,
                                                 const OptionalTensor& text_ids, double margin,
                                                 bool keep_scores) {
  const Inputs in(image, text, positive, image_ids, text_ids);
  const Tensor kept = scores_to_keep(keep_scores, in.x, in.y);
  const Tensor offset = in.score.neg().add_(margin);
  Tensor loss = in.score.mul(0);  // 0, or NaN where the positive score is not finite
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "sum_of_hinges_forward", [&] {
    const auto& loop = cpu::loops<scalar_t>(kernels());
    const auto* of_pair = offset.const_data_ptr<scalar_t>();
    auto* out = loss.mutable_data_ptr<scalar_t>();
    auto add = [&](const Tile<scalar_t>& t) {
      exclude(t, in.same);
      parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) {
          const int64_t i = t.first_row + r;
          for (int64_t k = in.pairs.start[i]; k < in.pairs.start[i + 1]; ++k) {
            const int64_t j = in.pairs.order[k];
            out[j] += loop.row_hinge_sum(t.row(r), t.columns, of_pair[j]);
          }
        }
      });
      parallel_for(0, t.columns, grain(t.rows), [&](int64_t c0, int64_t c1) {
        loop.column_hinge_sum(t.data, t.rows, t.columns, c0, c1, of_pair + t.first_column,
                              out + t.first_column);
      });
    };
    for_each_tile<scalar_t>(in.x, in.y, 1, add, if_kept(kept));
  });
  return {loss, kept};
}

std::tuple<Tensor, Tensor> sum_of_hinges_backward(const Tensor& grad, const Tensor& scores,
                                                  const Tensor& image, const Tensor& text,
                                                  const OptionalTensor& positive,
                                                  const OptionalTensor& image_ids,
                                                  const OptionalTensor& text_ids, double margin) {
  const Inputs in(image, text, positive, image_ids, text_ids);
  const Tensor offset = in.score.neg().add_(margin), g = grad.to(in.x.scalar_type()).contiguous();
  Tensor active = at::zeros_like(in.score);  // hinges > 0 of every pair
  Tensor grad_x, grad_y;
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "sum_of_hinges_backward", [&] {
    const auto& loop = cpu::loops<scalar_t>(kernels());
    const auto* of_pair = offset.const_data_ptr<scalar_t>();
    const auto* share = g.const_data_ptr<scalar_t>();
    auto* count = active.mutable_data_ptr<scalar_t>();
    auto weigh = [&](const Tile<scalar_t>& t) {
      if (!scores.numel()) exclude(t, in.same);
      parallel_for(0, t.columns, grain(t.rows), [&](int64_t c0, int64_t c1) {
        loop.column_hinge_count(t.data, t.rows, t.columns, c0, c1, of_pair + t.first_column,
                                count + t.first_column);
      });
      parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
        std::vector<scalar_t> weights(t.columns);
        for (int64_t r = r0; r < r1; ++r) {
          const int64_t i = t.first_row + r;
          loop.column_hinge_weights(t.row(r), weights.data(), t.columns, of_pair + t.first_column,
                                    share + t.first_column);
          for (int64_t k = in.pairs.start[i]; k < in.pairs.start[i + 1]; ++k) {
            const int64_t j = in.pairs.order[k];
            count[j] +=
                loop.row_hinge_weights(t.row(r), weights.data(), t.columns, of_pair[j], share[j]);
          }
          std::copy(weights.begin(), weights.end(), t.row(r));
        }
      });
    };
    std::tie(grad_x, grad_y) = products_of_weights<scalar_t>(in.x, in.y, 1, scores, weigh);
  });
  // Every active hinge also pulls on its pair's own score.
  const Tensor pull = active.mul_(g).unsqueeze(1);
  grad_y.sub_(in.matched.mul(pull));
  grad_x.index_add_(0, in.positive.clamp_min(0), in.y.mul(pull), -1);
  return {grad_x.to(image.scalar_type()), grad_y.to(text.scalar_type())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("sum_of_hinges_forward", sum_of_hinges_forward);
  m.impl("sum_of_hinges_backward", sum_of_hinges_backward);
}

}  // namespace
}  // namespace itm
