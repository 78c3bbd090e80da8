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
  const C *negatives, *bases;  // columns of [K, M]
  int64_t K, M;
  C positive, highest = 0, others;

  __device__ __forceinline__ Terms(const Softmaxes& in, int64_t first, C positive)
      : negatives(static_cast<const C*>(in.negatives) + first),
        bases(static_cast<const C*>(in.bases) + first),
        K(in.K),
        M(in.M),
        positive(positive) {
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
  // The difference first: that of two near logits is exact.
  __device__ __forceinline__ C exponent(int64_t k) const {
    return negatives[k * M] + (bases[k * M] - positive);
  }
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
  wait_for_launch_before();
  const int64_t m = (first_block + blockIdx.x) * kPairThreads + threadIdx.x;
  if (m >= in.M) return;
  const C positive = static_cast<const C*>(in.positive)[m];
  C sum = 0;
  for (int64_t s = 0; s < in.sides; ++s)
    sum += Terms<C>(in, s * in.K * in.M + m, positive).log_sum();
  // An infinite positive shows.
  loss[m] = static_cast<C>(in.weight) * sum + 0 * positive;
}

template <typename C>
__global__ void __launch_bounds__(kPairThreads)
    cross_entropy_gradient_kernel(Softmaxes in, PerRow grad, int64_t first_block, C* of_positive,
                                  C* of_negatives) {
  wait_for_launch_before();
  const int64_t m = (first_block + blockIdx.x) * kPairThreads + threadIdx.x;
  if (m >= in.M) return;
  const C positive = static_cast<const C*>(in.positive)[m];
  const C pull = static_cast<C>(in.weight) * static_cast<const C*>(grad.data)[m * grad.stride];
  C sum = 0;
  for (int64_t s = 0; s < in.sides; ++s) {
    const int64_t at = s * in.K * in.M + m;
    const Terms<C> terms(in, at, positive);
    for (int64_t k = 0; k < in.K; ++k) {
      const C share = pull * terms.share(k);
      of_negatives[at + k * in.M] = share;
      sum += share;
    }
  }
  of_positive[m] = -sum;
}

}  // namespace itm::cuda
