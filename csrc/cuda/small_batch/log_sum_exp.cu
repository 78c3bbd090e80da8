// Launches log-sum-exp over rows and columns.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/log_sum_exp.cuh"
#include "cuda/small_batch/log_sum_exp.h"

namespace itm::cuda {

void log_sum_exp(Type type, const ScoreParts& scores, const Pairing& pairing, const void* scale,
                 const ExpSums<void*>& to, void* kept, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    const auto at = [](void* out) { return static_cast<C*>(out); };
    const ExpSums<C*> sums{at(to.row), at(to.column), at(to.row_highest), at(to.column_highest),
                           at(to.positive)};
    launch_reduction(log_sum_exp_kernel<C>, scores.N > scores.M ? scores.N : scores.M,
                     sizeof(ExpSum<C>), stream, Scores<C>(scores), pairing,
                     static_cast<const C*>(scale), sums, at(kept));
  });
}

void log_sum_exp_gradient(Type type, const PerRow& grad_row, const PerRow& grad_column,
                          const PerRow& grad_positive, const ExpSums<const void*>& sums,
                          const ScoreParts& scores, const Pairing& pairing, const void* scale,
                          const Workspace& work, const SideGradients& to, void* grad_scale,
                          void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const auto at = [](const void* in) { return static_cast<const C*>(in); };
    const LogSumExpGradient<C> of_logit{
        Strided<C>(grad_row),
        Strided<C>(grad_column),
        Strided<C>(grad_positive),
        {at(sums.row), at(sums.column), at(sums.row_highest), at(sums.column_highest), nullptr},
        pairing};
    auto *weights = static_cast<C*>(work.weights), *of_scale = static_cast<C*>(work.of_rows);
    launch_reduction(score_gradient_kernel<C, LogSumExpGradient<C>>, scores.N, 0, stream,
                     Scores<C>(scores), of_logit, static_cast<const C*>(scale), weights, of_scale,
                     nullptr);
    launch_stored_row_gradient<T>(DenseScoreGradient<C>{weights, static_cast<int>(scores.M)}, to,
                                  {{of_scale, static_cast<C*>(grad_scale)}, {}}, stream);
  });
}

}  // namespace itm::cuda
