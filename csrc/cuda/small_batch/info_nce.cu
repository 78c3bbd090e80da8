// Launches InfoNCE as one operator.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/info_nce.cuh"
#include "cuda/small_batch/info_nce.h"

namespace itm::cuda {

void info_nce(Type type, const CosineParts& scores, const Pairing& pairing, const Scalar& scale,
              const ContrastiveResult& to, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    const int64_t most = std::max(scores.products.N, scores.products.M);
    const auto at = [](void* data) { return static_cast<C*>(data); };
    C* const parts = at(to.of_anchors);
    const InfoNce<C> reduction{Cosines<C>(scores),
                               pairing,
                               DeviceScalar<C>(scale),
                               static_cast<C>(to.weight),
                               at(to.scores),
                               static_cast<Anchor<C>*>(to.anchors),
                               parts,
                               parts + most,
                               {parts, at(to.total), to.weight},
                               {parts + most, at(to.of_scale), to.weight},
                               to.ticket,
                               ceil_div(most, kAnchors)};
    launch_cosine_reduction<C, ExpMoments<C>>(info_nce_kernel<C>, most, stream, reduction);
  });
}

void info_nce_gradient(Type type, const Pairing& pairing, const Scalar& scale,
                       const ContrastiveGradient& gradient, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const auto at = [](const void* data) { return static_cast<const C*>(data); };
    const InfoNceGradient<C> pairs{{},
                                   pairing,
                                   DeviceScalar<C>(scale),
                                   static_cast<C>(gradient.weight),
                                   static_cast<int>(gradient.rows.x.rows),
                                   static_cast<int>(gradient.rows.y.rows),
                                   gradient.cosine,
                                   at(gradient.grad),
                                   at(gradient.of_scale),
                                   at(gradient.scores),
                                   static_cast<const Anchor<C>*>(gradient.anchors),
                                   static_cast<C*>(gradient.to_scale)};
    launch_row_gradient<T>(pairs, gradient.rows, stream, true);
  });
}

}  // namespace itm::cuda
