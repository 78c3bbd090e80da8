#pragma once
// The gradient of InfoCMR: the weights of all rows and of the noise in the gradient of every row,
// and their products. A synthetic vector is a sum of members, so its weight is added to theirs.

#include "cuda/small_batch/info_cmr.cuh"

namespace itm::cuda {

template <typename C>
__global__ void __launch_bounds__(kReductionThreads, 2)
    cmr_score_gradient_kernel(Cmr all, DeviceScalar<C> given, CmrScoreWeights to,
                              int64_t first_block) {
  wait_for_launch_before();
  const auto shared = Shared<double>::all<kAnchors>();
  const int block = static_cast<int>(first_block) + static_cast<int>(blockIdx.x);
  const CmrAnchor in(all, block);
  const double scale = given.get();
  // If the loss is NaN, because of a row or of wrong ids, all gradients are NaN.
  const C total = *static_cast<const C*>(all.total);
  const double factor = total == total ? scale : kNan<double>;
  const auto* const anchors = reinterpret_cast<const Anchor<double>*>(all.anchors);
  const auto* const others = anchors + (in.of_image ? all.image.rows : 0);
  const Anchor<double> mine = anchors[block];
  const auto write = [&](int i, double weight) {
    if (in.of_image)
      static_cast<C*>(to.of_image)[in.n * (in.M + in.Z) + i] = static_cast<C>(weight);
    else
      static_cast<C*>(to.of_text)[i * static_cast<int>(in.own.rows) + in.n] =
          static_cast<C>(weight);
  };
  double along[1] = {0};
  visit_cosines(
      in.M, [&](const auto& at, auto& cosine) { in.read(at, cosine); },
      [&](int m, double cosine) {
        const Anchor<double> other = others[m];
        const double logit = scale * cosine;
        double weight = 0;
        if (in.paired(m))
          weight = -all.weight * (logistic(mine.over(logit)) + logistic(other.over(logit)));
        else if (!in.same(m))
          weight =
              mine.grad_log_sum * mine.softmax(logit) + other.grad_log_sum * other.softmax(logit);
        if (all.clusters) {
          const double vector = in.own.cosine[in.n * all.clusters + in.other.assignment[m]];
          if (vector != -INFINITY)
            weight +=
                mine.grad_log_sum * mine.softmax(scale * vector) * in.own.weight[in.n * in.M + m];
        }
        along[0] += factor * weight * cosine;
        write(m, factor * weight * other.inverse);
      });
  visit_cosines(
      in.Z, [&](const auto& at, auto& cosine) { in.read_noise(at, cosine); },
      [&](int z, double cosine) {
        const double weight = factor * mine.grad_log_sum * mine.softmax(scale * cosine);
        along[0] += weight * cosine;
        write(in.M + z, weight / divisor(to.noise_norm[z]));
      });
  block_sums(shared, 0, along);
  if (threadIdx.x) return;
  static_cast<C*>(to.along)[block] = static_cast<C>(along[0]);
  static_cast<C*>(to.inverse)[block] = static_cast<C>(mine.inverse);
}

// The stored weights, for the products with raw rows.
template <typename C>
struct CmrScoreGradient : ScoreGradientBase<C> {
  static constexpr int kSources = 2;
  static constexpr bool kUnit = true, kScalars = true;
  using Read = C;

  const C *of_image, *of_text, *along_rows, *inverses, *grad, *of_scale;
  C* to_scale;
  Matrix noise;
  int N, M;

  __device__ __forceinline__ Read read(bool of_image_, int source, int own, int other) const {
    const int at = source ? other + (of_image_ ? M : N) : other;
    return of_image_ ? of_image[own * (M + static_cast<int>(noise.rows)) + at]
                     : of_text[at * M + own];
  }
  __device__ __forceinline__ PairWeight<C> weight_of(bool, int, int, int, Read weight) const {
    return {weight, 0};
  }
  template <typename T>
  __device__ __forceinline__ Rows<T> rows(bool, int) const {
    return {static_cast<const T*>(noise.data), noise.rows, noise.stride, 0};
  }
  __device__ __forceinline__ C inverse(bool of_image_, int n) const {
    return inverses[of_image_ ? n : N + n];
  }
  __device__ __forceinline__ C along(bool of_image_, int n) const {
    return along_rows[of_image_ ? n : N + n];
  }
  __device__ __forceinline__ C factor() const { return *grad; }
  __device__ __forceinline__ void finish() const {
    if (threadIdx.x == 0) *to_scale = *grad * *of_scale;
  }
};

}  // namespace itm::cuda
