// Row and column log-sum-exp: every tile of logits is summed along both sides and forgotten.

#include <ATen/Dispatch.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <cmath>

#include "binding/common.h"
#include "binding/pairs.h"
#include "binding/rows.h"

namespace itm {
namespace {

// Maximum and sum of e^(logit - maximum), over what has been seen so far.
template <typename T>
struct Running {
  std::vector<T> highest;
  std::vector<double> total;

  explicit Running(int64_t size)
      : highest(size, -std::numeric_limits<T>::infinity()), total(size) {}

  Tensor log_sum(const at::TensorOptions& options) const {
    Tensor out = at::empty({static_cast<int64_t>(total.size())}, options);
    std::transform(highest.begin(), highest.end(), total.begin(), out.mutable_data_ptr<T>(),
                   [](T m, double l) { return l == 0 ? m : static_cast<T>(m + std::log(l)); });
    return out;
  }
};

std::tuple<Tensor, Tensor, Tensor> log_sum_exp_forward(const Tensor& x, const Tensor& y,
                                                       const Tensor& scale,
                                                       const OptionalTensor& x_ids,
                                                       const OptionalTensor& y_ids,
                                                       bool keep_scores) {
  const Tensor left = wide(x), right = wide(y), kept = scores_to_keep(keep_scores, left, right);
  const SameId same(x_ids, y_ids);
  return AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "log_sum_exp_forward", [&] {
    Running<scalar_t> row(left.size(0)), column(right.size(0));
    const auto& loop = cpu::loops<scalar_t>(kernels());
    auto add = [&](const Tile<scalar_t>& t) {
      if (x_ids.has_value()) exclude(t, same);
      parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
        loop.row_exp_sum(t.data, t.columns, r0, r1, &row.highest[t.first_row],
                         &row.total[t.first_row]);
      });
      parallel_for(0, t.columns, grain(8 * t.rows), [&](int64_t c0, int64_t c1) {
        loop.column_exp_sum(t.data, t.rows, t.columns, c0, c1, &column.highest[t.first_column],
                            &column.total[t.first_column]);
      });
    };
    for_each_tile<scalar_t>(left, right, scale.item<double>(), add, if_kept(kept));
    return std::make_tuple(row.log_sum(left.options()), column.log_sum(left.options()), kept);
  });
}

std::tuple<Tensor, Tensor, Tensor> log_sum_exp_backward(
    const Tensor& grad_row, const Tensor& grad_column, const Tensor& row, const Tensor& column,
    const Tensor& scores, const Tensor& x, const Tensor& y, const Tensor& scale,
    const OptionalTensor& x_ids, const OptionalTensor& y_ids) {
  const Tensor left = wide(x), right = wide(y);
  const Tensor a = grad_row.to(left.scalar_type()).contiguous();
  const Tensor b = grad_column.to(left.scalar_type()).contiguous();
  const SameId same(x_ids, y_ids);
  const double alpha = scale.item<double>();
  Tensor grad_x, grad_y;
  double grad_scale = 0;
  AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "log_sum_exp_backward", [&] {
    const auto& loop = cpu::loops<scalar_t>(kernels());
    const auto *ga = a.const_data_ptr<scalar_t>(), *gb = b.const_data_ptr<scalar_t>();
    const auto *lr = row.const_data_ptr<scalar_t>(), *lc = column.const_data_ptr<scalar_t>();
    auto weigh = [&](const Tile<scalar_t>& t) {
      parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
        loop.softmax_weights(t.data, t.columns, r0, r1, ga + t.first_row, lr + t.first_row,
                             gb + t.first_column, lc + t.first_column);
      });
      if (x_ids.has_value())
        for_each_same_id(t, same, [&](int64_t r, int64_t c) { t.row(r)[c] = 0; });
    };
    std::tie(grad_x, grad_y) = products_of_weights<scalar_t>(left, right, alpha, scores, weigh);
    // Before the scale is applied, <W y, x> is the sum of W times the unscaled scores.
    grad_scale = inner<scalar_t>(grad_x, left);
  });
  return {grad_x.mul_(alpha).to(x.scalar_type()), grad_y.mul_(alpha).to(y.scalar_type()),
          at::scalar_tensor(grad_scale, scale.options())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("log_sum_exp_forward", log_sum_exp_forward);
  m.impl("log_sum_exp_backward", log_sum_exp_backward);
}

}  // namespace
}  // namespace itm
