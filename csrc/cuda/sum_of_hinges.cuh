#pragma once
// Sum of hinges of a small matrix of scores. Backward, every active hinge also pulls on its pair's
// own score: a pair's hinges are counted along its row and its column, by different blocks, and the
// launch that multiplies puts both counts into the positive's weight.

#include "cuda/weights.cuh"

namespace itm::cuda {

template <typename C>
__global__ void __launch_bounds__(kFoldThreads, 4)
    sum_of_hinges_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, C margin, C* loss,
                         C* kept) {
  const int first = first_anchor(first_block), j = first + warp();
  const int own = first + lane() % kAnchors;
  const C of_column = own < scores.M ? margin - positive_score(scores, pairing, own) : C(0);
  const auto column =
      fold_columns<Sum<C>>(scores.N, scores.M, first, [&](Sum<C>& state, int n, int m) {
        const C score = scores.at(n, m);
        if (kept) kept[n * scores.M + m] = score;
        if (!same_id(pairing, n, m)) state.sum += hinge(score + of_column);
      });
  if (j >= scores.M) return;
  const C positive = positive_score(scores, pairing, j), offset = margin - positive;
  const int i = positive_of(pairing.positive, j), n = i < 0 ? 0 : i;
  const auto row = fold_row<Sum<C>>(scores.M, [&](Sum<C>& state, int m) {
    if (!same_id(pairing, n, m)) state.sum += hinge(scores.at(n, m) + offset);
  });
  // An infinite positive score shows.
  if (lane() == 0) loss[j] = row.sum + column.sum + 0 * positive;
}

// weights[n][m] of the negatives, and how many hinges are active along every pair's row and column.
template <typename C>
__global__ void __launch_bounds__(kFoldThreads, 4)
    weigh_hinges_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, C margin,
                        Numbers<C> grad, C* weights, C* in_row, C* in_column) {
  const int first = first_anchor(first_block), n = first + warp();
  const int own = first + lane() % kAnchors;
  const C of_column = own < scores.M ? margin - positive_score(scores, pairing, own) : C(0);
  const auto column =
      fold_columns<Sum<C>>(scores.N, scores.M, first, [&](Sum<C>& state, int r, int m) {
        if (!same_id(pairing, r, m) && scores.at(r, m) + of_column > 0) state.sum += 1;
      });
  if (n < scores.M && lane() == 0) in_column[n] = column.sum;
  if (n >= scores.N) return;
  C* to = weights + n * scores.M;
  for (int m = lane(); m < scores.M; m += 32) {
    const C offset = margin - positive_score(scores, pairing, m);
    const bool active = !same_id(pairing, n, m) && scores.at(n, m) + offset > 0;
    to[m] = active ? grad[m] : C(0);
  }
  // Every pair whose image this row is; a lane adds to what it has written itself.
  for (int at = 0; at < scores.M; at += 32) {
    const int candidate = at + lane();
    unsigned pairs =
        __ballot_sync(~0u, candidate < scores.M && positive_of(pairing.positive, candidate) == n);
    for (; pairs; pairs &= pairs - 1) {
      const int j = at + __popc((pairs & -pairs) - 1);
      const C offset = margin - scores.at(n, j), share = grad[j];
      Sum<C> count;
      for (int m = lane(); m < scores.M; m += 32) {
        if (same_id(pairing, n, m) || !(scores.at(n, m) + offset > 0)) continue;
        to[m] += share;
        count.sum += 1;
      }
      join_lanes<16, 1>(count);
      // The loss of a pair whose own score is not finite is NaN: so is its gradient.
      if (lane() == 0) in_row[j] = count.sum + 0 * offset;
    }
  }
}

// The weights of negatives as they were stored; a positive's are its active hinges.
template <typename C>
struct HingeWeights {
  const C* data;
  int M;
  const int64_t* positive;
  Numbers<C> grad;
  const C *in_row, *in_column;

  __device__ __forceinline__ C at(int n, int m) const {
    if (positive_of(positive, m) == n) return -grad[m] * (in_row[m] + in_column[m]);
    return data[n * M + m];
  }
};

}  // namespace itm::cuda
