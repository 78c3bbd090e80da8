// Launches the kernels of the max of hinges with a band over cosines.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/imc.cuh"

namespace itm::cuda {

void imc(Type type, const Imc& in, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    const int64_t N = in.scores.N, M = in.scores.M;
    C* const values = static_cast<C*>(in.values);
    const HingeFold<C> hinges{
        Scores<C>(in.scores), in.pairing,    static_cast<C>(in.margin), false, values,
        in.text_index,        in.image_index};
    const int64_t blocks = ceil_div(N, kAnchors) + ceil_div(M, kAnchors);
    launch_fold(imc_kernel<C>, blocks * kAnchors, sizeof(Hardest<C>), stream, hinges,
                ImageFold<C>{in.hardest_text, static_cast<C*>(in.violations)},
                BandFold<C>(in.image, in.low, in.high, values + M),
                BandFold<C>(in.text, in.low, in.high, values + M + N),
                FoldTotal<C>(in.total, blocks, values));
  });
}

void imc_gradient(Type type, const Imc& in, const void* grad, const WeightedRows& to,
                  void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    // A pair within the band is in both rows' sums, and has the same weight in both.
    const auto band = [](const ImcBand& side, const Matrix& rows) {
      return typename ImcPairs<C>::Band{side.mask, static_cast<int>(side.words),
                                        static_cast<C>(2 * side.weight), rows};
    };
    const ImcPairs<C> pairs{{},
                            static_cast<const C*>(grad),
                            in.pairing.positive,
                            in.text_index,
                            in.image_index,
                            in.hardest_text,
                            static_cast<const C*>(in.violations),
                            band(in.image, to.x),
                            band(in.text, to.y)};
    launch_weighted_pairs<T>(pairs, to, stream, false);
  });
}

}  // namespace itm::cuda
