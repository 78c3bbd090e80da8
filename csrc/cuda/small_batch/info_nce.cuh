#pragma once
// The cross-entropies of pairs among all texts of their row and all images of their column, with
// their total, and the gradient of the rows.
//
// Rows and columns are treated alike. An anchor has the sum of its negatives and one or more
// positives, each of which adds log(1 + sum / e^logit), so the loss keeps all of its digits. The
// anchor's terms of the loss and of the scale's gradient are known once its scores are reduced.

#include "cuda/small_batch/cosines.cuh"
#include "cuda/small_batch/logistic.cuh"
#include "cuda/small_batch/row_gradient.cuh"

namespace itm::cuda {

// The highest logit, the sum of e^(logit - highest), and the sum of its products with the scores.
// The sums propagate NaN.
template <typename C>
struct ExpMoments {
  C highest = -kInfinity<C>, sum = 0, product = 0;

  __device__ __forceinline__ void add(C logit, C score) {
    if (logit != -kInfinity<C>) merge({logit, C(1), score});
  }
  __device__ __forceinline__ void merge(const ExpMoments& other) {
    const C most = highest > other.highest ? highest : other.highest;
    // NaN reaches the sum through its factor, whichever is the maximum.
    const C own = factor(highest, most), others = factor(other.highest, most);
    sum = sum * own + other.sum * others;
    product = product * own + other.product * others;
    highest = most;
  }
  __device__ __forceinline__ ExpMoments from_lane(int lanes) const {
    return {__shfl_xor_sync(~0u, highest, lanes), __shfl_xor_sync(~0u, sum, lanes),
            __shfl_xor_sync(~0u, product, lanes)};
  }
  // base: the highest logit, or 0 if it is not finite; log_sum: the logarithm of the sum relative
  // to it; mean: the mean score.
  __device__ __forceinline__ C base() const { return highest - highest == 0 ? highest : C(0); }
  __device__ __forceinline__ C log_sum() const {
    return highest - base() + (sum == 0 ? C(0) : logarithm(sum));
  }
  __device__ __forceinline__ C mean() const { return sum == 0 ? C(0) : product / sum; }

 private:
  // Infinities of the same sign would give NaN for their difference.
  static __device__ __forceinline__ C factor(C from, C most) {
    return from == most ? C(1) : exponential(from - most);
  }
};

// The values of a row or a column that its gradient needs: the log-sum of its negatives, the
// gradient of that log-sum, and 1 / norm.
template <typename C>
struct alignas(4 * sizeof(C) < 16 ? 4 * sizeof(C) : 16) Anchor {
  C highest, log_sum, grad_log_sum, inverse;

  // The logit by which the negatives outweigh a positive.
  __device__ __forceinline__ C over(C positive) const { return log_sum + (highest - positive); }
  // A negative's softmax weight. Logits are subtracted first: the difference of two near logits is
  // exact.
  __device__ __forceinline__ C softmax(C logit) const {
    return log_sum == -kInfinity<C> ? C(0) : exponential((logit - highest) - log_sum);
  }
};

// Sums over the positives of an anchor.
template <typename C>
struct PositiveSums {
  C loss = 0, grad_log_sum = 0, of_scale = 0;

  __device__ __forceinline__ void add(const ExpMoments<C>& negatives, C score, C scale) {
    const C logit = scale * score;
    const C over = negatives.log_sum() + (negatives.base() - logit), slope = logistic(over);
    loss += softplus(over) + 0 * logit;  // propagates an infinite positive
    grad_log_sum += slope;
    of_scale += slope * (negatives.mean() - score);
  }
  __device__ __forceinline__ void add_lanes() {
    loss = warp_sum(loss), grad_log_sum = warp_sum(grad_log_sum), of_scale = warp_sum(of_scale);
  }
};

template <typename C>
struct InfoNce {
  Cosines<C> cosines;
  Pairing pairing;
  DeviceScalar<C> scale;
  C weight;
  C* scores;              // [N, M] or null
  Anchor<C>* anchors;     // [N + M]
  C *losses, *of_scales;  // [max(N, M)], without the weight
  ScalarSum<C> loss, scale_gradient;
  unsigned* ticket;
  int64_t blocks;

  // Called by a block, for rows and columns [first, first + 8).
  __device__ __forceinline__ void run(int first) const {
    using State = ExpMoments<C>;
    using Memory = ReductionMemory<C, State>;
    const auto shared = Shared<C>::template all<Memory::kNumbers>();
    const Scores<C>& products = cosines.products;
    const int N = products.N, M = products.M, own = first + warp(), x = Memory::kStates, y = x + N;
    const C factor = scale.get();
    cosines.invert(shared, x);
    const int m = first + lane() % kAnchors;
    const C inverse_of_m = shared.read(y + within(m, M));
    const auto column = reduce_columns<State>(
        products, pairing, first, [&](State& state, int n, C product, bool same) {
          const C score = cosines.over(product, shared.read(x + n), inverse_of_m);
          if (scores) scores[n * M + m] = score;
          if (!same) state.add(factor * score, score);
        });
    PositiveSums<C> of_column;
    if (own < M) {
      const int i = positive_of(pairing.positive, own), n = i < 0 ? 0 : i;
      const C inverse = shared.read(y + own);
      const C score = cosines.over(products.at(n, own), shared.read(x + n), inverse);
      of_column.add(column, i < 0 ? kNan<C> : score, factor);
      if (lane() == 0)
        anchors[N + own] = {column.base(), column.log_sum(), weight * of_column.grad_log_sum,
                            inverse};
    }
    PositiveSums<C> of_row;
    if (own < N) {
      const C inverse = shared.read(x + own);
      const auto row =
          reduce_row<State>(products, pairing, own, [&](State& state, int j, C product, bool same) {
            const C score = cosines.over(product, inverse, shared.read(y + j));
            if (!same) state.add(factor * score, score);
          });
      visit_positives(own, [&](int j, C product, bool unmatched) {
        const C score = cosines.over(product, inverse, shared.read(y + j));
        of_row.add(row, unmatched ? kNan<C> : score, factor);
      });
      of_row.add_lanes();
      if (lane() == 0)
        anchors[own] = {row.base(), row.log_sum(), weight * of_row.grad_log_sum, inverse};
    }
    if (lane() || (own >= N && own >= M)) return;
    losses[own] = of_column.loss + of_row.loss;
    of_scales[own] = of_column.of_scale + of_row.of_scale;
  }

  // Each lane calls visit(j, product, unmatched) for its texts j whose image is n. Unmatched texts
  // count towards the first image, so its gradient is NaN where the loss is.
  template <typename Visit>
  __device__ __forceinline__ void visit_positives(int n, Visit&& visit) const {
    const Scores<C>& products = cosines.products;
    const int M = products.M;
    if (!pairing.positive) {
      if (lane() == 0) visit(n, products.at(n, n), false);
      return;
    }
    for (int first = lane(); first < M; first += 32 * kAtOnce) {
      int64_t image[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) image[k] = pairing.positive[within(first + 32 * k, M)];
      int at[kAtOnce];
      bool own[kAtOnce], any = false;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        at[k] = n * M + within(first + 32 * k, M);
        own[k] = first + 32 * k < M && (image[k] < 0 ? 0 : image[k]) == n;
        any |= own[k];
      }
      if (!any) continue;
      C product[kAtOnce];
      products.read(at, product);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (own[k]) visit(first + 32 * k, product[k], image[k] < 0);
    }
  }

  __device__ __forceinline__ void add() const {
    if (!is_last_block(ticket, blocks)) return;
    const int count =
        cosines.products.N > cosines.products.M ? cosines.products.N : cosines.products.M;
    if (warp() == 0) loss.add(count);
    if (warp() == 1) scale_gradient.add(count);
  }
};

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, kReductionBlocks)
    info_nce_kernel(int64_t first_block, InfoNce<C> reduction) {
  wait_for_launch_before();
  reduction.run(first_anchor(first_block));
  reduction.add();
}

// The weight of a negative in the softmax of its row and its column, or the gradient of a positive.
template <typename C>
struct InfoNceGradient : ScoreGradientBase<C> {
  static constexpr bool kUnit = true;
  Pairing pairing;
  DeviceScalar<C> scale;
  C weight;
  int N, M;
  bool cosine;
  const C *grad, *of_scale, *scores;
  const Anchor<C>* anchors;
  C* to_scale;

  struct Read {
    C score;
    Anchor<C> other;
  };
  __device__ __forceinline__ Read read(bool of_x, int, int own, int other) const {
    const int n = of_x ? own : other, m = of_x ? other : own;
    return {scores[n * M + m], anchors[of_x ? N + other : other]};
  }
  __device__ __forceinline__ PairWeight<C> weight_of(bool of_x, int, int own, int other,
                                                     const Read& read) const {
    const int n = of_x ? own : other, m = of_x ? other : own;
    const Anchor<C> mine = anchors[of_x ? own : N + own];
    const C logit = scale.get() * read.score;
    C found = 0;
    if (!same_id(pairing, n, m))
      found = mine.grad_log_sum * mine.softmax(logit) +
              read.other.grad_log_sum * read.other.softmax(logit);
    else if (positive_of(pairing.positive, m) == n)
      found = -weight * (logistic(mine.over(logit)) + logistic(read.other.over(logit)));
    return {found * read.other.inverse, cosine ? found * read.score : C(0)};
  }
  __device__ __forceinline__ C inverse(bool of_x, int own) const {
    return anchors[of_x ? own : N + own].inverse;
  }
  __device__ __forceinline__ C factor() const { return *grad * scale.get(); }
  __device__ __forceinline__ void finish() const {
    if (threadIdx.x == 0) *to_scale = *grad * *of_scale;
  }
};

}  // namespace itm::cuda
