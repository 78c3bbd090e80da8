// Row and column log-sum-exp of given scores: a block of rows is reduced along both dimensions
// while it is in a cache.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include "cpu/hardest_negatives.h"
#include "cpu/log_sums.h"
#include "cpu/score_blocks.h"

namespace itm::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> log_sum_exp_from_scores_forward(
    const Tensor& scores, const Tensor& scale, const Tensor& x_ids, const Tensor& y_ids,
    const Tensor& positive) {
  const auto options = wide_options(scores);
  const SameId same(x_ids, y_ids);
  const Tensor positives = positive.contiguous();
  const Tensor own = at::full({scores.size(1)}, std::numeric_limits<double>::quiet_NaN(), options);
  return AT_DISPATCH_FLOATING_TYPES(own.scalar_type(), "log_sum_exp_from_scores_forward", [&] {
    RunningLogSumExp<scalar_t> row(scores.size(0)), column(scores.size(1));
    for_each_score_block<scalar_t>(scores, scale.item<double>(), [&](const Tile<scalar_t>& t) {
      extract_positives(t, same, positives.const_data_ptr<int64_t>(),
                        own.mutable_data_ptr<scalar_t>());
      add_exponentials(t, row, column);
    });
    const auto [of_row, row_base] = row.relative(options);
    const auto [of_column, column_base] = column.relative(options);
    return std::make_tuple(of_row, of_column, own, row_base, column_base);
  });
}

std::tuple<Tensor, Tensor> log_sum_exp_from_scores_backward(
    const Tensor& grad_row, const Tensor& grad_column, const Tensor& grad_positive,
    const Tensor& row, const Tensor& column, const Tensor& row_highest,
    const Tensor& column_highest, const Tensor& scores, const Tensor& scale, const Tensor& x_ids,
    const Tensor& y_ids, const Tensor& positive) {
  const auto options = wide_options(scores);
  const auto numbers = [&](const Tensor& t) { return t.to(options).contiguous(); };
  const Tensor a = numbers(grad_row), b = numbers(grad_column), p = numbers(grad_positive);
  // The sum of no logit, or of -inf only, has no gradient; -inf - -inf would be NaN.
  const auto below = [&](const Tensor& t) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    return t.masked_fill(t.eq(-infinity), infinity);
  };
  const Tensor sums[] = {numbers(below(row)), numbers(row_highest), numbers(below(column)),
                         numbers(column_highest)};
  const SameId same(x_ids, y_ids);
  const Tensor positives = positive.contiguous();
  const int64_t* positive_of = positives.const_data_ptr<int64_t>();
  Tensor grad_scores;
  double grad_scale = 0;
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "log_sum_exp_from_scores_backward", [&] {
    const auto of = [](const Tensor& t) { return t.const_data_ptr<scalar_t>(); };
    const simd::Softmaxes<scalar_t> all{of(a), of(sums[1]), of(sums[0]),
                                        of(b), of(sums[3]), of(sums[2])};
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      to_softmax_gradient(t, all, &same, positive_of, of(p));
      grad_scale += weighted_sum(t, scores, same, positive_of);
    };
    grad_scores = gradient_of_score_blocks<scalar_t>(scores, scale.item<double>(), to_gradient);
  });
  return {grad_scores, at::scalar_tensor(grad_scale, scale.options())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("log_sum_exp_from_scores_forward", log_sum_exp_from_scores_forward);
  m.impl("log_sum_exp_from_scores_backward", log_sum_exp_from_scores_backward);
}

}  // namespace
}  // namespace itm::cpu
