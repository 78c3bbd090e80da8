#pragma once
// Rows compared by direct differences or by their directions, forward and backward.

#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/where.h>

#include "binding/common.h"

namespace itm {

// x / max(|x|, eps), as torch.nn.functional.normalize.
struct UnitRows {
  static constexpr double kSmallest = 1e-12;
  Tensor length, rows;

  explicit UnitRows(const Tensor& x)
      : length(at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, true)),
        rows(x.div(length.clamp_min(kSmallest))) {}

  // The gradient of x from that of its unit rows: along itself a unit vector does not move.
  Tensor gradient(const Tensor& of_rows) const {
    const Tensor along = of_rows.mul(rows).sum(-1, true).mul(rows);
    const Tensor moved = at::where(length.gt(kSmallest), of_rows.sub(along), of_rows);
    return moved.div(length.clamp_min(kSmallest));
  }
};

// out[n][m] = sum over d of |x[n][d] - y[m][d]|, or of its square.
template <typename T>
void distances(const Tensor& x, const Tensor& y, bool squared, Tensor& out) {
  const int64_t N = x.size(0), M = y.size(0), D = x.size(1);
  const auto& loop = cpu::loops<T>(kernels());
  const int64_t group = loop.group_size();
  const T *from = x.const_data_ptr<T>(), *to = y.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  at::parallel_for(0, (M + group - 1) / group, grain(N * D), [&](int64_t g0, int64_t g1) {
    std::vector<T> packed(group * D);
    for (int64_t g = g0; g < g1; ++g) {
      const int64_t first = g * group, columns = std::min(group, M - first);
      loop.pack_columns(to + first * D, columns, D, packed.data());
      const auto rows = squared ? loop.squared_rows : loop.l1_rows;
      rows(from, N, packed.data(), D, result + first, M, columns);
    }
  });
}

// out[i] = sum over j of weight[i][j] times sign(x[i] - y[j]), or times x[i] - y[j].
template <typename T>
void add_all(const Tensor& weight, const Tensor& x, const Tensor& y, bool sign, Tensor& out) {
  const int64_t N = x.size(0), M = y.size(0), D = x.size(1);
  const auto& loop = cpu::loops<T>(kernels());
  const auto add = sign ? loop.add_all_signs : loop.add_all_differences;
  const T *from = x.const_data_ptr<T>(), *to = y.const_data_ptr<T>();
  const T* w = weight.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  // Rows of y that stay in a second-level cache while all rows of x pass by.
  const int64_t block = std::max<int64_t>(1, (256 << 10) / (D * static_cast<int64_t>(sizeof(T))));
  at::parallel_for(0, N, grain(M * D), [&](int64_t i0, int64_t i1) {
    for (int64_t j = 0; j < M; j += block)
      add(result + i0 * D, from + i0 * D, i1 - i0, to + j * D, w + i0 * M + j, M,
          std::min(block, M - j), D);
  });
}

}  // namespace itm
