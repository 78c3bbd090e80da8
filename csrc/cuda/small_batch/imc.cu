// Launches the max of hinges with a band over cosines.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/imc.cuh"

namespace itm::cuda {

void imc(Type type, const Imc& in, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    const int64_t N = in.scores.N, M = in.scores.M;
    C* const values = static_cast<C*>(in.values);
    const HingeReduction<C> hinges{
        Scores<C>(in.scores), in.pairing,    static_cast<C>(in.margin), false, values,
        in.text_index,        in.image_index};
    const int64_t blocks = ceil_div(N, kAnchors) + ceil_div(M, kAnchors);
    launch_reduction(imc_kernel<C>, blocks * kAnchors, sizeof(Hardest<C>), stream, hinges,
                     ImageReduction<C>{in.hardest_text, static_cast<C*>(in.violations)},
                     BandReduction<C>(in.image, in.low, in.high, values + M),
                     BandReduction<C>(in.text, in.low, in.high, values + M + N),
                     GridTotal<C>(in.total, blocks, values));
  });
}

void imc_gradient(Type type, const Imc& in, const void* grad, const SideGradients& to,
                  void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    // A pair within the band is in the sums of both rows, with the same weight.
    const auto band = [](const ImcBand& side, const Matrix& rows) {
      return typename ImcGradient<C>::Band{side.mask, static_cast<int>(side.words),
                                           static_cast<C>(2 * side.weight), rows};
    };
    const ImcGradient<C> pairs{{},
                               static_cast<const C*>(grad),
                               in.pairing.positive,
                               in.text_index,
                               in.image_index,
                               in.hardest_text,
                               static_cast<const C*>(in.violations),
                               band(in.image, to.x),
                               band(in.text, to.y)};
    launch_row_gradient<T>(pairs, to, stream, false);
  });
}

}  // namespace itm::cuda
