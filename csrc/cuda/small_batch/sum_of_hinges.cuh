#pragma once
// Sum of hinges of a small matrix of scores. In the backward pass, every active hinge also
// contributes to its pair's own score: the hinges of a pair are counted along its row and its
// column, by different blocks, and the launch that computes the products adds both counts to the
// positive's weight.

#include "cuda/small_batch/score_gradient.cuh"

namespace itm::cuda {

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    sum_of_hinges_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, C margin, C* loss,
                         C* kept) {
  wait_for_launch_before();
  const int first = first_anchor(first_block), j = first + warp();
  const int own = first + lane() % kAnchors;
  const C score_of_own = own < scores.M ? positive_score(scores, pairing, own) : C(0);
  const C of_column = margin - score_of_own;
  const auto column =
      reduce_columns<Sum<C>>(scores, pairing, first, [&](Sum<C>& state, int n, C score, bool same) {
        if (kept) kept[n * scores.M + own] = score;
        if (!same) state.sum += hinge(score + of_column);
      });
  if (j >= scores.M) return;
  const C positive = __shfl_sync(~0u, score_of_own, warp()), offset = margin - positive;
  const int i = positive_of(pairing.positive, j);
  const auto row = reduce_row<Sum<C>>(scores, pairing, i < 0 ? 0 : i,
                                      [&](Sum<C>& state, int, C score, bool same) {
                                        if (!same) state.sum += hinge(score + offset);
                                      });
  // Propagates an infinite positive score.
  if (lane() == 0) loss[j] = row.sum + column.sum + 0 * positive;
}

// weights[n][m] of the negatives, and the numbers of active hinges along every pair's row and
// column.
template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    hinge_gradient_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, C margin,
                          Strided<C> grad, C* weights, C* in_row, C* in_column) {
  wait_for_launch_before();
  const int first = first_anchor(first_block), n = first + warp();
  const int own = first + lane() % kAnchors;
  const C of_column = own < scores.M ? margin - positive_score(scores, pairing, own) : C(0);
  const auto column =
      reduce_columns<Sum<C>>(scores, pairing, first, [&](Sum<C>& state, int, C score, bool same) {
        if (!same && score + of_column > 0) state.sum += 1;
      });
  if (n < scores.M && lane() == 0) in_column[n] = column.sum;
  if (n >= scores.N) return;
  C* to = weights + n * scores.M;
  for (int at = lane(); at < scores.M; at += 32 * kAtOnce) {
    C offset[kAtOnce], pair_grad[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) pair_grad[k] = grad[within(at + 32 * k, scores.M)];
    positive_scores<32>(scores, pairing, at, offset);
    visit_pairs<0, 32>(scores, pairing, n, at, [&](int, int m, C score, bool same) {
      const int k = (m - at) / 32;
      to[m] = !same && score + (margin - offset[k]) > 0 ? pair_grad[k] : C(0);
    });
  }
  unsigned own_pairs = 0;
  // For every pair whose image is this row. Each lane adds only to weights that it has written
  // itself.
  for (int at = 0; at < scores.M; at += 32) {
    if (at % (32 * kAtOnce) == 0) own_pairs = pairs_of_image(pairing, n, at + lane(), scores.M);
    unsigned pairs = __ballot_sync(~0u, own_pairs >> at / 32 % kAtOnce & 1);
    for (; pairs; pairs &= pairs - 1) {
      const int j = at + __popc((pairs & -pairs) - 1);
      const C pair_grad = grad[j], offset = margin - scores.at(n, j);
      Sum<C> count;
      for (int first = lane(); first < scores.M; first += 32 * kAtOnce) {
        C before[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k)
          before[k] = first + 32 * k < scores.M ? to[first + 32 * k] : C(0);
        visit_pairs<0, 32>(scores, pairing, n, first, [&](int, int m, C score, bool same) {
          if (same || !(score + offset > 0)) return;
          to[m] = before[(m - first) / 32] + pair_grad;
          count.sum += 1;
        });
      }
      merge_lanes<16, 1>(count);
      // If a pair's own score is not finite, its loss is NaN, and so is its gradient.
      if (lane() == 0) in_row[j] = count.sum + 0 * offset;
    }
  }
}

// The stored weights of negatives; a positive's weight is minus its number of active hinges.
template <typename C>
struct HingeScoreGradient {
  const C* data;
  int M;
  const int64_t* positive;
  Strided<C> grad;
  const C *in_row, *in_column;

  __device__ __forceinline__ C at(int n, int m) const {
    if (positive_of(positive, m) == n) return -grad[m] * (in_row[m] + in_column[m]);
    return data[n * M + m];
  }
};

}  // namespace itm::cuda
