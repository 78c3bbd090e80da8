#pragma once
// Row and column log-sum-exp over tiles of logits, and their gradient.

#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {

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

// Adds a tile of logits to the sums of its rows and columns.
template <typename T>
void add_exponentials(const Tile<T>& t, RunningLogSumExp<T>& row, RunningLogSumExp<T>& column) {
  const auto& loop = loops<T>();
  parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
    loop.row_exp_sum(t.data, t.columns, r0, r1, &row.highest[t.first_row], &row.total[t.first_row]);
  });
  parallel_for(0, t.columns, grain(8 * t.rows), [&](int64_t c0, int64_t c1) {
    loop.column_exp_sum(t.data, t.rows, t.columns, c0, c1, &column.highest[t.first_column],
                        &column.total[t.first_column]);
  });
}

// Turns a tile of logits into the gradient of the sums. Pairs that share an id get that of their
// positive score, or 0; without `same` all pairs are in the sums.
template <typename T>
void to_softmax_gradient(const Tile<T>& t, const simd::Softmaxes<T>& all, const SameId* same,
                         const int64_t* positive_of, const T* of_positive) {
  const auto here = all.at(t.first_row, t.first_column);
  parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
    loops<T>().softmax_weights(t.data, t.columns, r0, r1, here);
  });
  if (!same) return;
  for_each_same_id(t, *same, [&](int64_t r, int64_t c) {
    const int64_t i = t.first_row + r, j = t.first_column + c;
    t.row(r)[c] = positive_of && positive_of[j] == i ? of_positive[j] : 0;
  });
}

}  // namespace itm::cpu
