// Row and column log-sum-exp of a small batch, on CUDA: four launches, two forward and two
// backward, for rows that need no copy. The scale stays on the device.

#include "aten/unit_rows.h"
#include "cuda/small_batch/log_sum_exp.h"
#include "cuda/small_batch/score_gradient_binding.h"

namespace itm::cuda {
namespace {

using Sums = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Sums log_sum_exp_forward(const Tensor& x, const Tensor& y, const Tensor& scale,
                         const OptionalTensor& x_ids, const OptionalTensor& y_ids,
                         const OptionalTensor& positive, bool cosine, bool keep_scores) {
  refuse_cosine(cosine);
  const OnDevice device(x);
  const StoredScores scores(device, x, y);
  const PairIds ids(positive, x_ids, y_ids);
  const Tensor factor = scale.to(wide_type(x)), kept = scores_to_keep(keep_scores, scores);
  const auto vector = [&](int64_t size) { return at::empty({size}, scores.parts.options()); };
  const int64_t N = x.size(0), M = y.size(0);
  Tensor row = vector(N), column = vector(M), own = vector(positive.has_value() ? M : 0);
  Tensor row_highest = vector(N), column_highest = vector(M);
  log_sum_exp(type_of(x), scores.from, ids.at(), factor.const_data_ptr(),
              {row.mutable_data_ptr(), column.mutable_data_ptr(), row_highest.mutable_data_ptr(),
               column_highest.mutable_data_ptr(), data_or_null(own)},
              data_or_null(kept), device.stream());
  device.check_launch();
  return {row, column, own, row_highest, column_highest, kept};
}

std::tuple<Tensor, Tensor, Tensor> log_sum_exp_backward(
    const Tensor& grad_row, const Tensor& grad_column, const Tensor& grad_positive,
    const Tensor& row, const Tensor& column, const Tensor& row_highest,
    const Tensor& column_highest, const Tensor& scores, const Tensor& x, const Tensor& y,
    const Tensor& scale, const OptionalTensor& x_ids, const OptionalTensor& y_ids,
    const OptionalTensor& positive, bool cosine) {
  refuse_cosine(cosine);
  const OnDevice device(x);
  const KeptScores kept(device, scores, x, y);
  const PairIds ids(positive, x_ids, y_ids);
  const RowGradient of_row(grad_row, x), of_column(grad_column, x), of_positive(grad_positive, x);
  const Tensor factor = scale.to(wide_type(x));
  const Tensor sums[] = {row.contiguous(), column.contiguous(), row_highest.contiguous(),
                         column_highest.contiguous()};
  const BothSides sides(x, y);
  Tensor grad_scale = at::empty({}, factor.options());
  log_sum_exp_gradient(type_of(x), of_row.at(), of_column.at(), of_positive.at(),
                       {sums[0].const_data_ptr(), sums[1].const_data_ptr(),
                        sums[2].const_data_ptr(), sums[3].const_data_ptr(), nullptr},
                       kept.from, ids.at(), factor.const_data_ptr(), sides.work(), sides.rows(),
                       grad_scale.mutable_data_ptr(), device.stream());
  device.check_launch();
  return {sides.to_x, sides.to_y, grad_scale.to(scale.scalar_type())};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("log_sum_exp_forward", log_sum_exp_forward);
  m.impl("log_sum_exp_backward", log_sum_exp_backward);
}

}  // namespace
}  // namespace itm::cuda
