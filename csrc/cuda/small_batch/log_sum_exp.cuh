#pragma once
// Log-sum-exp of the rows and columns of a small matrix of scores, and the gradient of its logits.

#include "cuda/small_batch/log_sum_exp.h"
#include "cuda/small_batch/score_gradient.cuh"

namespace itm::cuda {

// The highest logit and the sum of e^(logit - highest). The sum propagates NaN.
template <typename C>
struct ExpSum {
  C highest = -kInfinity<C>, sum = 0;

  __device__ __forceinline__ void add(C logit) {
    if (logit != -kInfinity<C>) merge({logit, C(1)});
  }
  __device__ __forceinline__ void merge(const ExpSum& other) {
    const C most = highest > other.highest ? highest : other.highest;
    // NaN reaches the sum through its factor, whichever logit is larger.
    sum = sum * factor(highest, most) + other.sum * factor(other.highest, most);
    highest = most;
  }
  __device__ __forceinline__ ExpSum from_lane(int lanes) const {
    return {__shfl_xor_sync(~0u, highest, lanes), __shfl_xor_sync(~0u, sum, lanes)};
  }
  // base: the highest logit, or 0 if it is not finite; log_sum: the logarithm of the sum relative
  // to it.
  __device__ __forceinline__ C base() const { return highest - highest == 0 ? highest : C(0); }
  __device__ __forceinline__ C log_sum() const {
    return highest - base() + (sum == 0 ? C(0) : logarithm(sum));
  }

 private:
  // Infinities of the same sign would give NaN for their difference.
  static __device__ __forceinline__ C factor(C from, C most) {
    return from == most ? C(1) : exponential(from - most);
  }
};

// With ids, pairs with equal ids are excluded.
template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    log_sum_exp_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, const C* scale,
                       ExpSums<C*> to, C* kept) {
  wait_for_launch_before();
  const int first = first_anchor(first_block), own = first + warp();
  const C factor = *scale;
  const bool excluding = pairing.image_ids;
  const int m = first + lane() % kAnchors;
  const int positive = to.positive && m < scores.M ? positive_of(pairing.positive, m) : -1;
  const auto column = reduce_columns<ExpSum<C>>(scores, pairing, first,
                                                [&](ExpSum<C>& state, int n, C score, bool same) {
                                                  if (kept) kept[n * scores.M + m] = score;
                                                  if (!excluding || !same)
                                                    state.add(factor * score);
                                                  if (positive == n)
                                                    to.positive[m] = factor * score;
                                                });
  if (own < scores.M && lane() == 0) {
    to.column[own] = column.log_sum(), to.column_highest[own] = column.base();
    if (to.positive && positive_of(pairing.positive, own) < 0) to.positive[own] = kNan<C>;
  }
  if (own >= scores.N) return;
  const auto row =
      reduce_row<ExpSum<C>>(scores, pairing, own, [&](ExpSum<C>& state, int, C score, bool same) {
        if (!excluding || !same) state.add(factor * score);
      });
  if (lane() == 0) to.row[own] = row.log_sum(), to.row_highest[own] = row.base();
}

// The gradient of a logit: its softmax weights in its row and column, or the gradient of a
// positive.
template <typename C>
struct LogSumExpGradient {
  Strided<C> grad_row, grad_column, grad_positive;
  ExpSums<const C*> sums;
  Pairing pairing;

  // The values of row n and column m; those of the row are the same for all of a warp's columns.
  struct Place {
    C grad_row, row_highest, row, grad_column, column_highest, column, grad_positive;
    int64_t image, text;
    bool positive;
  };
  __device__ __forceinline__ Place read(int n, int m) const {
    const bool ids = pairing.image_ids, own = ids && pairing.positive;
    return {grad_row[n],
            sums.row_highest[n],
            sums.row[n],
            grad_column[m],
            sums.column_highest[m],
            sums.column[m],
            own ? grad_positive[m] : C(0),
            ids ? pairing.image_ids[n] : 0,
            ids ? pairing.text_ids[m] : 1,
            own && pairing.positive[m] == n};
  }
  __device__ __forceinline__ C at(const Place& at, C score, C scale) const {
    if (at.image == at.text) return at.positive ? at.grad_positive : C(0);
    const C logit = scale * score;
    return at.grad_row * softmax(logit, at.row_highest, at.row) +
           at.grad_column * softmax(logit, at.column_highest, at.column);
  }
  // Logits are subtracted first: the difference of two near logits is exact.
  static __device__ __forceinline__ C softmax(C logit, C highest, C log_sum) {
    return log_sum == -kInfinity<C> ? C(0) : exponential((logit - highest) - log_sum);
  }
};

}  // namespace itm::cuda
