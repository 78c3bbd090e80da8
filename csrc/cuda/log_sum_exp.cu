// Launches the kernels of log-sum-exp over rows and columns.

#include "cuda/dispatch.cuh"
#include "cuda/log_sum_exp.cuh"

namespace itm::cuda {

void log_sum_exp(Type type, const ScoreParts& scores, const Pairing& pairing, const void* scale,
                 void* row, void* column, void* kept, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    launch_fold(log_sum_exp_kernel<C>, scores.N > scores.M ? scores.N : scores.M, sizeof(ExpSum<C>),
                stream, Scores<C>(scores), pairing, static_cast<const C*>(scale),
                static_cast<C*>(row), static_cast<C*>(column), static_cast<C*>(kept));
  });
}

void log_sum_exp_gradient(Type type, const PerRow& grad_row, const PerRow& grad_column,
                          const void* row, const void* column, const ScoreParts& scores,
                          const Pairing& pairing, const void* scale, const Workspace& work,
                          const WeightedRows& to, void* grad_scale, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const OfExpSums<C> of_logit{Numbers<C>(grad_row), Numbers<C>(grad_column),
                                static_cast<const C*>(row), static_cast<const C*>(column), pairing};
    auto *weights = static_cast<C*>(work.weights), *of_scale = static_cast<C*>(work.of_rows);
    launch_fold(weigh_kernel<C, OfExpSums<C>>, scores.N, 0, stream, Scores<C>(scores), of_logit,
                static_cast<const C*>(scale), weights, of_scale, nullptr);
    launch_weighted<T>(StoredWeights<C>{weights, static_cast<int>(scores.M)}, to,
                       {{of_scale, static_cast<C*>(grad_scale)}, {}}, stream);
  });
}

}  // namespace itm::cuda
