#pragma once
// Sigmoid loss of a small matrix of scores: every pair is a binary classification.

#include "cuda/small_batch/logistic.cuh"
#include "cuda/small_batch/score_gradient.cuh"

namespace itm::cuda {

// The label of a pair. Pairs that are not positive but have equal ids are ignored.
enum class Kind { kNegative, kPositive, kNone };

__device__ __forceinline__ Kind kind_of(bool same, bool positive) {
  return !same ? Kind::kNegative : positive ? Kind::kPositive : Kind::kNone;
}

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    sigmoid_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, const C* scale,
                   const C* bias, C* loss, C* kept) {
  wait_for_launch_before();
  const int first = first_anchor(first_block), own = first + warp();
  const C factor = *scale, offset = *bias;
  const int m = first + lane() % kAnchors;
  const int positive = m < scores.M ? positive_of(pairing.positive, m) : -1;
  const auto column =
      reduce_columns<Sum<C>>(scores, pairing, first, [&](Sum<C>& state, int n, C score, bool same) {
        const C logit = factor * score + offset;
        if (kept) kept[n * scores.M + m] = score;
        const Kind kind = kind_of(same, positive == n);
        if (kind == Kind::kNegative) state.sum += softplus(logit);
        // Propagates an infinite positive logit.
        if (kind == Kind::kPositive) state.sum += softplus(-logit) + 0 * logit;
      });
  if (own >= scores.M || lane()) return;
  loss[own] = positive_of(pairing.positive, own) < 0 ? kNan<C> : column.sum;
}

template <typename C>
struct SigmoidLogitGradient {
  Strided<C> grad;
  Pairing pairing;
  const C* bias;

  struct Place {
    C grad, bias;
    int64_t image, text;
    bool positive;
  };
  __device__ __forceinline__ Place read(int n, int m) const {
    const bool ids = pairing.image_ids;
    return {grad[m], *bias, ids ? pairing.image_ids[n] : n, ids ? pairing.text_ids[m] : m,
            positive_of(pairing.positive, m) == n};
  }
  __device__ __forceinline__ C at(const Place& at, C score, C scale) const {
    const C logit = scale * score + at.bias;
    const Kind kind = kind_of(at.image == at.text, at.positive);
    if (kind == Kind::kNone) return 0;
    return kind == Kind::kPositive ? -at.grad * logistic(-logit) : at.grad * logistic(logit);
  }
};

}  // namespace itm::cuda
