#pragma once
// Cross-entropy of positives among negatives that are summed already: a thread a pair.

#include "cuda/compat.cuh"
#include "cuda/cross_entropy.h"

namespace itm::cuda {

constexpr int kPairThreads = 128;

// The terms of a softmax, relative to the positive, whose own is e^0: the highest exponent and the
// sum of the other terms over it. A small loss is log(1 + others), with all of its digits.
template <typename C>
struct Terms {
  const C* negatives;  // a column of [K, M]
  int64_t K, M;
  C positive, highest = 0, others;

  __device__ __forceinline__ Terms(const C* from, int64_t K, int64_t M, C positive)
      : negatives(from), K(K), M(M), positive(positive) {
    for (int64_t k = 0; k < K; ++k) highest = exponent(k) > highest ? exponent(k) : highest;
    bool left_out = highest == 0;
    others = left_out ? C(0) : exponential(-highest);
    for (int64_t k = 0; k < K; ++k) {
      if (!left_out && exponent(k) == highest)
        left_out = true;
      else
        others += term(k);
    }
  }
  __device__ __forceinline__ C exponent(int64_t k) const { return negatives[k * M] - positive; }
  // An infinite exponent is no difference from itself. NaN stays.
  __device__ __forceinline__ C term(int64_t k) const {
    return exponent(k) == highest ? C(1) : exponential(exponent(k) - highest);
  }
  __device__ __forceinline__ C log_sum() const { return highest + logarithm_of_one_plus(others); }
  __device__ __forceinline__ C share(int64_t k) const { return term(k) / (1 + others); }
};

template <typename C>
__global__ void __launch_bounds__(kPairThreads)
    cross_entropy_kernel(Softmaxes in, int64_t first_block, C* loss) {
  const int64_t m = (first_block + blockIdx.x) * kPairThreads + threadIdx.x;
  if (m >= in.M) return;
  const C positive = static_cast<const C*>(in.positive)[m];
  C sum = 0;
  for (int64_t s = 0; s < in.sides; ++s) {
    const C* from = static_cast<const C*>(in.negatives) + s * in.K * in.M + m;
    sum += Terms<C>(from, in.K, in.M, positive).log_sum();
  }
  // An infinite positive shows.
  loss[m] = static_cast<C>(in.weight) * sum + 0 * positive;
}

template <typename C>
__global__ void __launch_bounds__(kPairThreads)
    cross_entropy_gradient_kernel(Softmaxes in, PerRow grad, int64_t first_block, C* of_positive,
                                  C* of_negatives) {
  const int64_t m = (first_block + blockIdx.x) * kPairThreads + threadIdx.x;
  if (m >= in.M) return;
  const C positive = static_cast<const C*>(in.positive)[m];
  const C pull = static_cast<C>(in.weight) * static_cast<const C*>(grad.data)[m * grad.stride];
  C sum = 0;
  for (int64_t s = 0; s < in.sides; ++s) {
    const int64_t at = s * in.K * in.M + m;
    const Terms<C> terms(static_cast<const C*>(in.negatives) + at, in.K, in.M, positive);
    for (int64_t k = 0; k < in.K; ++k) {
      const C share = pull * terms.share(k);
      of_negatives[at + k * in.M] = share;
      sum += share;
    }
  }
  of_positive[m] = -sum;
}

}  // namespace itm::cuda
