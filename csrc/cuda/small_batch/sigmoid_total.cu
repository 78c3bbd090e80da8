// Launches the sigmoid loss as one operator.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/sigmoid_total.cuh"
#include "cuda/small_batch/sigmoid_total.h"

namespace itm::cuda {

void sigmoid_total(Type type, const CosineParts& scores, const Pairing& pairing,
                   const Scalar& scale, const Scalar& bias, const ContrastiveResult& to,
                   void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    const int64_t M = scores.products.M;
    const auto at = [](void* data) { return static_cast<C*>(data); };
    C* const parts = at(to.of_anchors);
    const SigmoidTotal<C> reduction{Cosines<C>(scores),
                                    pairing,
                                    DeviceScalar<C>(scale),
                                    DeviceScalar<C>(bias),
                                    at(to.scores),
                                    at(to.anchors),
                                    parts,
                                    parts + M,
                                    parts + 2 * M,
                                    {parts, at(to.total), to.weight},
                                    {parts + M, at(to.of_scale), to.weight},
                                    {parts + 2 * M, at(to.of_bias), to.weight},
                                    to.ticket,
                                    ceil_div(M, kAnchors)};
    launch_cosine_reduction<C, SigmoidSums<C>>(sigmoid_total_kernel<C>, M, stream, reduction);
  });
}

void sigmoid_total_gradient(Type type, const Pairing& pairing, const Scalar& scale,
                            const Scalar& bias, const ContrastiveGradient& gradient, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const auto at = [](const void* data) { return static_cast<const C*>(data); };
    const SigmoidGradient<C> pairs{{},
                                   pairing,
                                   DeviceScalar<C>(scale),
                                   DeviceScalar<C>(bias),
                                   static_cast<C>(gradient.weight),
                                   static_cast<int>(gradient.rows.x.rows),
                                   static_cast<int>(gradient.rows.y.rows),
                                   gradient.cosine,
                                   at(gradient.grad),
                                   at(gradient.of_scale),
                                   at(gradient.of_bias),
                                   at(gradient.scores),
                                   at(gradient.anchors),
                                   static_cast<C*>(gradient.to_scale),
                                   static_cast<C*>(gradient.to_bias)};
    launch_row_gradient<T>(pairs, gradient.rows, stream, true);
  });
}

}  // namespace itm::cuda
