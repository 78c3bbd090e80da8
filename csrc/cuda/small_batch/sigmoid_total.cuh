#pragma once
// The sigmoid loss of raw rows as one operator: each text's terms of the loss, and of the gradients
// of scale and bias, are known once its scores are reduced.

#include "cuda/small_batch/cosines.cuh"
#include "cuda/small_batch/sigmoid.cuh"

namespace itm::cuda {

template <typename C>
struct SigmoidSums {
  C loss = 0, of_scale = 0, of_bias = 0;

  __device__ __forceinline__ void merge(const SigmoidSums& other) {
    loss += other.loss, of_scale += other.of_scale, of_bias += other.of_bias;
  }
  __device__ __forceinline__ SigmoidSums from_lane(int lanes) const {
    return {__shfl_xor_sync(~0u, loss, lanes), __shfl_xor_sync(~0u, of_scale, lanes),
            __shfl_xor_sync(~0u, of_bias, lanes)};
  }
};

// The gradient of a pair's logit.
template <typename C>
__device__ __forceinline__ C sigmoid_slope(Kind kind, C logit) {
  if (kind == Kind::kNone) return 0;
  return kind == Kind::kPositive ? -logistic(-logit) : logistic(logit);
}

template <typename C>
struct SigmoidTotal {
  Cosines<C> cosines;
  Pairing pairing;
  DeviceScalar<C> scale, bias;
  C* scores;                          // [N, M] or null
  C* inverses;                        // [N + M]
  C *losses, *of_scales, *of_biases;  // [M]
  ScalarSum<C> loss, scale_gradient, bias_gradient;
  unsigned* ticket;
  int64_t blocks;

  // Called by a block, for columns [first, first + 8).
  __device__ __forceinline__ void run(int first) const {
    using State = SigmoidSums<C>;
    using Memory = ReductionMemory<C, State>;
    const auto shared = Shared<C>::template all<Memory::kNumbers>();
    const Scores<C>& products = cosines.products;
    const int N = products.N, M = products.M, own = first + warp(), x = Memory::kStates;
    const C factor = scale.get(), offset = bias.get();
    cosines.invert(shared, x);
    if (first == 0)
      for (int i = static_cast<int>(threadIdx.x); i < N + M; i += kReductionThreads)
        inverses[i] = shared.read(x + i);
    const int m = first + lane() % kAnchors;
    const C inverse = shared.read(x + N + within(m, M));
    const int positive = m < M ? positive_of(pairing.positive, m) : -1;
    const auto column = reduce_columns<State>(
        products, pairing, first, [&](State& state, int n, C product, bool same) {
          const C score = cosines.over(product, shared.read(x + n), inverse);
          if (scores) scores[n * M + m] = score;
          const Kind kind = kind_of(same, positive == n);
          if (kind == Kind::kNone) return;
          const C logit = factor * score + offset, slope = sigmoid_slope(kind, logit);
          // Propagates an infinite positive logit.
          state.loss += kind == Kind::kPositive ? softplus(-logit) + 0 * logit : softplus(logit);
          state.of_scale += slope * score, state.of_bias += slope;
        });
    if (own >= M || lane()) return;
    const C unmatched = positive_of(pairing.positive, own) < 0 ? kNan<C> : C(0);
    losses[own] = column.loss + unmatched;
    of_scales[own] = column.of_scale + unmatched, of_biases[own] = column.of_bias + unmatched;
  }

  __device__ __forceinline__ void add() const {
    if (!is_last_block(ticket, blocks)) return;
    if (warp() == 0) loss.add(cosines.products.M);
    if (warp() == 1) scale_gradient.add(cosines.products.M);
    if (warp() == 2) bias_gradient.add(cosines.products.M);
  }
};

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    sigmoid_total_kernel(int64_t first_block, SigmoidTotal<C> reduction) {
  wait_for_launch_before();
  reduction.run(first_anchor(first_block));
  reduction.add();
}

template <typename C>
struct SigmoidGradient : ScoreGradientBase<C> {
  static constexpr bool kUnit = true;
  Pairing pairing;
  DeviceScalar<C> scale, bias;
  C weight;
  int N, M;
  bool cosine;
  const C *grad, *of_scale, *of_bias, *scores, *inverses;
  C *to_scale, *to_bias;

  struct Read {
    C score, inverse;
  };
  __device__ __forceinline__ Read read(bool of_x, int, int own, int other) const {
    const int n = of_x ? own : other, m = of_x ? other : own;
    return {scores[n * M + m], inverses[of_x ? N + other : other]};
  }
  __device__ __forceinline__ PairWeight<C> weight_of(bool of_x, int, int own, int other,
                                                     const Read& read) const {
    const int n = of_x ? own : other, m = of_x ? other : own;
    const int positive = positive_of(pairing.positive, m);
    const C logit = scale.get() * read.score + bias.get();
    // A text without an image, by wrong ids: the gradient is NaN where the loss is.
    const C found = positive < 0
                        ? kNan<C>
                        : sigmoid_slope(kind_of(same_id(pairing, n, m), positive == n), logit);
    return {found * read.inverse, cosine ? found * read.score : C(0)};
  }
  __device__ __forceinline__ C inverse(bool of_x, int own) const {
    return inverses[of_x ? own : N + own];
  }
  __device__ __forceinline__ C factor() const { return weight * *grad * scale.get(); }
  __device__ __forceinline__ void finish() const {
    if (threadIdx.x == 0) *to_scale = *grad * *of_scale;
    if (threadIdx.x == 1) *to_bias = *grad * *of_bias;
  }
};

}  // namespace itm::cuda
