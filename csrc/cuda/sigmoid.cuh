#pragma once
// Sigmoid loss of a small matrix of scores: every pair is a classification of its own.

#include "cuda/weights.cuh"

namespace itm::cuda {

// What a pair is. A pair that only shares an id takes no part.
enum class Kind { kNegative, kPositive, kNone };

__device__ __forceinline__ Kind kind_of(const Pairing& pairing, int n, int m) {
  if (!same_id(pairing, n, m)) return Kind::kNegative;
  return positive_of(pairing.positive, m) == n ? Kind::kPositive : Kind::kNone;
}

// log(1 + e^x), and its derivative.
template <typename C>
__device__ __forceinline__ C softplus(C x) {
  return (x <= 0 ? C(0) : x) + logarithm_of_one_plus(exponential(x > 0 ? -x : x));
}
template <typename C>
__device__ __forceinline__ C logistic(C x) {
  const C e = exponential(x > 0 ? -x : x);
  return (x > 0 ? C(1) : e) / (1 + e);
}

template <typename C>
__global__ void __launch_bounds__(kFoldThreads, 4)
    sigmoid_kernel(int64_t first_block, Scores<C> scores, Pairing pairing, const C* scale,
                   const C* bias, C* loss, C* kept) {
  const int first = first_anchor(first_block), own = first + warp();
  const C factor = *scale, offset = *bias;
  const auto column =
      fold_columns<Sum<C>>(scores.N, scores.M, first, [&](Sum<C>& state, int n, int m) {
        const C score = scores.at(n, m), logit = factor * score + offset;
        if (kept) kept[n * scores.M + m] = score;
        const Kind kind = kind_of(pairing, n, m);
        if (kind == Kind::kNegative) state.sum += softplus(logit);
        // An infinite positive logit shows.
        if (kind == Kind::kPositive) state.sum += softplus(-logit) + 0 * logit;
      });
  if (own >= scores.M || lane()) return;
  loss[own] = positive_of(pairing.positive, own) < 0 ? kNan<C> : column.sum;
}

template <typename C>
struct OfSigmoids {
  Numbers<C> grad;
  Pairing pairing;
  const C* bias;

  __device__ __forceinline__ C at(int n, int m, C score, C scale) const {
    const C logit = scale * score + *bias;
    const Kind kind = kind_of(pairing, n, m);
    if (kind == Kind::kNone) return 0;
    return kind == Kind::kPositive ? -grad[m] * logistic(-logit) : grad[m] * logistic(logit);
  }
};

}  // namespace itm::cuda
