// Launches the sigmoid loss.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/sigmoid.cuh"
#include "cuda/small_batch/sigmoid.h"

namespace itm::cuda {

void sigmoid(Type type, const ScoreParts& scores, const Pairing& pairing, const void* scale,
             const void* bias, void* loss, void* kept, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    launch_reduction(sigmoid_kernel<C>, scores.M, sizeof(Sum<C>), stream, Scores<C>(scores),
                     pairing, static_cast<const C*>(scale), static_cast<const C*>(bias),
                     static_cast<C*>(loss), static_cast<C*>(kept));
  });
}

void sigmoid_gradient(Type type, const PerRow& grad, const ScoreParts& scores,
                      const Pairing& pairing, const void* scale, const void* bias,
                      const Workspace& work, const SideGradients& to, void* grad_scale,
                      void* grad_bias, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const SigmoidLogitGradient<C> of_logit{Strided<C>(grad), pairing, static_cast<const C*>(bias)};
    auto *weights = static_cast<C*>(work.weights), *of_scale = static_cast<C*>(work.of_rows);
    auto* of_bias = static_cast<C*>(work.of_columns);
    launch_reduction(score_gradient_kernel<C, SigmoidLogitGradient<C>>, scores.N, 0, stream,
                     Scores<C>(scores), of_logit, static_cast<const C*>(scale), weights, of_scale,
                     of_bias);
    launch_stored_row_gradient<T>(
        DenseScoreGradient<C>{weights, static_cast<int>(scores.M)}, to,
        {{of_scale, static_cast<C*>(grad_scale)}, {of_bias, static_cast<C*>(grad_bias)}}, stream);
  });
}

}  // namespace itm::cuda
