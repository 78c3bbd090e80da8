// Row and column log-sum-exp: every tile of logits is reduced along both dimensions and discarded.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <cmath>

#include "aten/unit_rows.h"
#include "cpu/hardest_negatives.h"

namespace itm::cpu {
namespace {

// The running maximum, and the sum of e^(logit - maximum), over the tiles visited so far.
template <typename T>
struct RunningLogSumExp {
  std::vector<T> highest;
  std::vector<double> total;

  explicit RunningLogSumExp(int64_t size)
      : highest(size, -std::numeric_limits<T>::infinity()), total(size) {}

  // Returns the log-sum-exp relative to the maximum, and the maximum if it is finite, else 0. Their
  // sum in one number would lose the digits that a small loss needs.
  std::tuple<Tensor, Tensor> relative(const at::TensorOptions& options) const {
    const auto size = static_cast<int64_t>(total.size());
    Tensor sums = at::empty({size}, options), bases = at::empty({size}, options);
    T *log_sum = sums.mutable_data_ptr<T>(), *base = bases.mutable_data_ptr<T>();
    for (int64_t k = 0; k < size; ++k) {
      base[k] = std::isinf(highest[k]) ? T(0) : highest[k];
      log_sum[k] = static_cast<T>(highest[k] - base[k] + (total[k] == 0 ? 0 : std::log(total[k])));
    }
    return {sums, bases};
  }
};

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
    const auto& loop = loops<scalar_t>();
    auto add = [&](const Tile<scalar_t>& t) {
      if (positive_of)
        extract_positives(t, same, positive_of, own.mutable_data_ptr<scalar_t>());
      else if (x_ids.has_value())
        exclude(t, same);
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
    const auto& loop = loops<scalar_t>();
    const auto of = [](const Tensor& t) { return t.const_data_ptr<scalar_t>(); };
    const simd::Softmaxes<scalar_t> all{of(a), of(row_highest),    of(row),
                                        of(b), of(column_highest), of(column)};
    const scalar_t* of_positive = of(p);
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      const auto here = all.at(t.first_row, t.first_column);
      parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
        loop.softmax_weights(t.data, t.columns, r0, r1, here);
      });
      if (x_ids.has_value())
        for_each_same_id(t, same, [&](int64_t r, int64_t c) {
          const int64_t i = t.first_row + r, j = t.first_column + c;
          t.row(r)[c] = positive_of && positive_of[j] == i ? of_positive[j] : 0;
        });
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
