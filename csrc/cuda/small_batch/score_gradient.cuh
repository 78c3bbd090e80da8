#pragma once
// The backward pass of sums over all pairs of a small batch. One launch computes the gradient of
// every score, and one the gradients of the rows of both sides; an additional block adds the
// gradients of scalars.

#include "cuda/small_batch/grid_sum.cuh"
#include "cuda/small_batch/row_gradient.cuh"

namespace itm::cuda {

// weights[n][m] = scale times the gradient of logit [n][m]; of_scale[n] and of_bias[n] (unless
// null) are row n's terms of the gradients of scale and bias. One warp per row.
template <typename C, typename LogitGradient>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    score_gradient_kernel(int64_t first_block, Scores<C> scores, LogitGradient of_logit,
                          const C* scale, C* weights, C* of_scale, C* of_bias) {
  wait_for_launch_before();
  const int n = first_anchor(first_block) + warp();
  if (n >= scores.N) return;
  const C factor = *scale;
  C product = 0, sum = 0;
  for (int first = lane(); first < scores.M; first += 32 * kAtOnce) {
    int at[kAtOnce];
    typename LogitGradient::Place place[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int m = within(first + 32 * k, scores.M);
      at[k] = n * scores.M + m, place[k] = of_logit.read(n, m);
    }
    C score[kAtOnce];
    scores.read(at, score);
#pragma unroll
    for (int k = 0; k < kAtOnce && first + 32 * k < scores.M; ++k) {
      const C gradient = of_logit.at(place[k], score[k], factor);
      weights[at[k]] = factor * gradient;
      if (gradient == 0) continue;  // an excluded pair's score may be infinite
      product += gradient * score[k];
      sum += gradient;
    }
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    product += __shfl_xor_sync(~0u, product, lanes);
    sum += __shfl_xor_sync(~0u, sum, lanes);
  }
  if (lane()) return;
  of_scale[n] = product;
  if (of_bias) of_bias[n] = sum;
}

// Stored weights [N, M].
template <typename C>
struct DenseScoreGradient {
  const C* data;
  int M;
  __device__ __forceinline__ C at(int n, int m) const { return data[n * M + m]; }
};

template <typename C>
struct ScalarSums {
  ScalarSum<C> scale, bias;
};

// Weights at(n, m) that another launch has computed, and scalars that are sums over rows.
template <typename C, typename Weights>
struct StoredScoreGradient : ScoreGradientBase<C> {
  Weights weights;
  ScalarSums<C> scalars;
  int N;

  using Read = C;
  __device__ __forceinline__ C read(bool of_x, int, int own, int other) const {
    return weights.at(of_x ? own : other, of_x ? other : own);
  }
  __device__ __forceinline__ PairWeight<C> weight_of(bool, int, int, int, C read) const {
    return {read, C(0)};
  }
  __device__ __forceinline__ void finish() const {
    warp() == 0 ? scalars.scale.add(N) : scalars.bias.add(N);
  }
};

template <typename T, typename Weights>
void launch_stored_row_gradient(const Weights& weights, const SideGradients& to,
                                const ScalarSums<Wide<T>>& scalars, void* stream) {
  const StoredScoreGradient<Wide<T>, Weights> pairs{
      {}, weights, scalars, static_cast<int>(to.x.rows)};
  launch_row_gradient<T>(pairs, to, stream, scalars.scale.parts != nullptr);
}

}  // namespace itm::cuda
