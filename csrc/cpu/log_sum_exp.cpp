// Row and column log-sum-exp: every tile of logits is reduced along both dimensions and discarded.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include "aten/unit_rows.h"
#include "cpu/hardest_negatives.h"
#include "cpu/log_sums.h"

namespace itm::cpu {
namespace {

using Sums = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Sums log_sum_exp_forward(const Tensor& x, const Tensor& y, const Tensor& scale,
                         const OptionalTensor& x_ids, const OptionalTensor& y_ids,
                         const OptionalTensor& positive, bool cosine, bool keep_scores) {
  refuse_cosine(cosine);
  const Tensor left = wide(x), right = wide(y), kept = scores_to_keep(keep_scores, left, right);
  const SameId same(x_ids, y_ids);
  const int64_t* positive_of = ids_or_null(positive);
  const Tensor own = at::full({positive_of ? right.size(0) : 0},
                              std::numeric_limits<double>::quiet_NaN(), left.options());
  return AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "log_sum_exp_forward", [&] {
    RunningLogSumExp<scalar_t> row(left.size(0)), column(right.size(0));
    auto add = [&](const Tile<scalar_t>& t) {
      if (positive_of)
        extract_positives(t, same, positive_of, own.mutable_data_ptr<scalar_t>());
      else if (x_ids.has_value())
        exclude(t, same);
      add_exponentials(t, row, column);
    };
    for_each_tile<scalar_t>(left, right, scale.item<double>(), add, if_kept(kept));
    const auto [of_row, row_base] = row.relative(left.options());
    const auto [of_column, column_base] = column.relative(left.options());
    return Sums(of_row, of_column, own, row_base, column_base, kept);
  });
}

std::tuple<Tensor, Tensor, Tensor> log_sum_exp_backward(
    const Tensor& grad_row, const Tensor& grad_column, const Tensor& grad_positive,
    const Tensor& row, const Tensor& column, const Tensor& row_highest,
    const Tensor& column_highest, const Tensor& scores, const Tensor& x, const Tensor& y,
    const Tensor& scale, const OptionalTensor& x_ids, const OptionalTensor& y_ids,
    const OptionalTensor& positive, bool cosine) {
  refuse_cosine(cosine);
  const Tensor left = wide(x), right = wide(y);
  const auto numbers = [&](const Tensor& t) { return t.to(left.scalar_type()).contiguous(); };
  const Tensor a = numbers(grad_row), b = numbers(grad_column), p = numbers(grad_positive);
  const SameId same(x_ids, y_ids);
  const int64_t* positive_of = ids_or_null(positive);
  const double alpha = scale.item<double>();
  Tensor grad_x, grad_y;
  double grad_scale = 0;
  AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "log_sum_exp_backward", [&] {
    const auto of = [](const Tensor& t) { return t.const_data_ptr<scalar_t>(); };
    const simd::Softmaxes<scalar_t> all{of(a), of(row_highest),    of(row),
                                        of(b), of(column_highest), of(column)};
    const scalar_t* of_positive = of(p);
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      to_softmax_gradient(t, all, x_ids.has_value() ? &same : nullptr, positive_of, of_positive);
    };
    std::tie(grad_x, grad_y) =
        tiled_products_gradient<scalar_t>(left, right, alpha, scores, to_gradient);
    // <W y, x> is the sum of W times the unscaled scores as long as grad_x is not scaled.
    grad_scale = inner_product<scalar_t>(grad_x, left);
  });
  return {grad_x.mul_(alpha).to(x.scalar_type()), grad_y.mul_(alpha).to(y.scalar_type()),
          at::scalar_tensor(grad_scale, scale.options())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("log_sum_exp_forward", log_sum_exp_forward);
  m.impl("log_sum_exp_backward", log_sum_exp_backward);
}

}  // namespace
}  // namespace itm::cpu
