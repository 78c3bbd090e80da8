// Row and column log-sum-exp of a small batch, on CUDA: four launches, two each way, for rows that
// need no copy. The scale stays on the device.

#include "cuda/binding/weights.h"

namespace itm::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> log_sum_exp_forward(const Tensor& x, const Tensor& y,
                                                       const Tensor& scale,
                                                       const OptionalTensor& x_ids,
                                                       const OptionalTensor& y_ids,
                                                       bool keep_scores) {
  const OnDevice device(x);
  const StoredScores scores(device, x, y);
  const PairIds ids({}, x_ids, y_ids);
  const Tensor factor = scale.to(wide_type(x)), kept = scores_to_keep(keep_scores, scores);
  Tensor row = at::empty({x.size(0)}, scores.parts.options());
  Tensor column = at::empty({y.size(0)}, scores.parts.options());
  log_sum_exp(type_of(x), scores.from, ids.at(), factor.const_data_ptr(), row.mutable_data_ptr(),
              column.mutable_data_ptr(), data_or_null(kept), device.stream());
  device.launched();
  return {row, column, kept};
}

std::tuple<Tensor, Tensor, Tensor> log_sum_exp_backward(
    const Tensor& grad_row, const Tensor& grad_column, const Tensor& row, const Tensor& column,
    const Tensor& scores, const Tensor& x, const Tensor& y, const Tensor& scale,
    const OptionalTensor& x_ids, const OptionalTensor& y_ids) {
  const OnDevice device(x);
  const KeptScores kept(device, scores, x, y);
  const PairIds ids({}, x_ids, y_ids);
  const RowNumbers of_row(grad_row, x), of_column(grad_column, x);
  const Tensor factor = scale.to(wide_type(x)), own_row = row.contiguous();
  const Tensor own_column = column.contiguous();
  const RowsOfBothSides sides(x, y);
  Tensor grad_scale = at::empty({}, factor.options());
  log_sum_exp_gradient(type_of(x), of_row.at(), of_column.at(), own_row.const_data_ptr(),
                       own_column.const_data_ptr(), kept.from, ids.at(), factor.const_data_ptr(),
                       sides.work(), sides.rows(), grad_scale.mutable_data_ptr(), device.stream());
  device.launched();
  return {sides.to_x, sides.to_y, grad_scale.to(scale.scalar_type())};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("log_sum_exp_forward", log_sum_exp_forward);
  m.impl("log_sum_exp_backward", log_sum_exp_backward);
}

}  // namespace
}  // namespace itm::cuda
