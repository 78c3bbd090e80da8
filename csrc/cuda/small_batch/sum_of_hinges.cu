// Launches the sum of hinges.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/sum_of_hinges.cuh"
#include "cuda/small_batch/sum_of_hinges.h"

namespace itm::cuda {

void sum_of_hinges(Type type, const ScoreParts& scores, const Pairing& pairing, double margin,
                   void* loss, void* kept, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    launch_reduction(sum_of_hinges_kernel<C>, scores.M, sizeof(Sum<C>), stream, Scores<C>(scores),
                     pairing, static_cast<C>(margin), static_cast<C*>(loss), static_cast<C*>(kept));
  });
}

void sum_of_hinges_gradient(Type type, const PerRow& grad, const ScoreParts& scores,
                            const Pairing& pairing, double margin, const Workspace& work,
                            const SideGradients& to, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    auto *weights = static_cast<C*>(work.weights), *in_row = static_cast<C*>(work.of_rows);
    auto* in_column = static_cast<C*>(work.of_columns);
    launch_reduction(hinge_gradient_kernel<C>, scores.N > scores.M ? scores.N : scores.M,
                     sizeof(Sum<C>), stream, Scores<C>(scores), pairing, static_cast<C>(margin),
                     Strided<C>(grad), weights, in_row, in_column);
    launch_stored_row_gradient<T>(
        HingeScoreGradient<C>{weights, static_cast<int>(scores.M), pairing.positive,
                              Strided<C>(grad), in_row, in_column},
        to, {}, stream);
  });
}

}  // namespace itm::cuda
