// Launches max of hinges and hardest negatives.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/max_of_hinges.cuh"
#include "cuda/small_batch/max_of_hinges.h"

namespace itm::cuda {

namespace {

template <typename T, typename Gradients>
void launch_gather(const Gradients& gradients, const RowGradients& rows, void* stream) {
  const int64_t targets = rows.image.rows + rows.text.rows;
  in_launches(targets * ceil_div(rows.D, Gather::kColumns), [&](int64_t first, int64_t count) {
    launch(gather_kernel<T, Gradients>, count, Gather::kThreads, Gather::kSharedBytes<Wide<T>>,
           stream, gradients, StridedRows<T>(rows.image), StridedRows<T>(rows.text), rows.D, first,
           static_cast<T*>(rows.to_image), static_cast<T*>(rows.to_text));
  });
}

}  // namespace

void max_of_hinges(Type type, const ScoreParts& scores, const Pairing& pairing, double margin,
                   bool semihard, void* loss, int64_t* text_index, int64_t* image_index,
                   const Total& total, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    const HingeReduction<C> reduction{
        Scores<C>(scores), pairing,    static_cast<C>(margin), semihard, static_cast<C*>(loss),
        text_index,        image_index};
    launch_reduction(max_of_hinges_kernel<C>, scores.M, sizeof(Hardest<C>), stream, reduction,
                     GridTotal<C>(total, ceil_div(scores.M, kAnchors), reduction.loss));
  });
}

void hardest_negatives(Type type, const ScoreParts& scores, const Pairing& pairing,
                       const HardestOut& to, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    launch_reduction(hardest_negatives_kernel<C>, scores.N > scores.M ? scores.N : scores.M,
                     sizeof(Hardest<C>), stream, Scores<C>(scores), pairing,
                     static_cast<C*>(to.positive), static_cast<C*>(to.text_score), to.text_index,
                     static_cast<C*>(to.image_score), to.image_index);
  });
}

void max_of_hinges_gradient(Type type, const LossGradient& grad, const int64_t* positive,
                            const int64_t* text_index, const int64_t* image_index,
                            const RowGradients& rows, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    launch_gather<T>(
        HingeGradients<C>{Strided<C>(grad.grad), static_cast<C>(grad.weight), grad.nan_if_unmatched,
                          positive, text_index, image_index, static_cast<int>(rows.text.rows)},
        rows, stream);
  });
}

void hardest_negatives_gradient(Type type, const PerRow& of_positive, const PerRow& of_text,
                                const PerRow& of_image, const int64_t* positive,
                                const int64_t* text_index, const int64_t* image_index,
                                const RowGradients& rows, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    launch_gather<T>(
        HardestGradients<C>{Strided<C>(of_positive), Strided<C>(of_text), Strided<C>(of_image),
                            positive, text_index, image_index, static_cast<int>(rows.image.rows),
                            static_cast<int>(rows.text.rows)},
        rows, stream);
  });
}

}  // namespace itm::cuda
