// Launches bounded sums from stored scores.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/stored_band.cuh"

namespace itm::cuda {

void stored_band(Type type, const StoredBand& band, void* stream) {
  with_wide_type(type, [&](auto zero) {
    in_launches(ceil_div(band.scores.N, kRowWarps), [&](int64_t first, int64_t count) {
      launch(stored_band_kernel<decltype(zero)>, count, kRowThreads, 0, stream, band,
             Scores<decltype(zero)>(band.scores), first);
    });
  });
}

void stored_band_gradient(Type type, const StoredBandGradient& in, int64_t columns, void* stream) {
  const Matrix nothing{in.y.data, 0, in.y.stride, 0};
  const SideGradients to{in.y, nothing, columns, in.out, nullptr};
  if (in.distance)
    return with_wide_type(type, [&](auto zero) {
      using C = decltype(zero);
      launch_row_gradient<C>(BandGradient<C, true>(in), to, stream, false);
    });
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    launch_row_gradient<T>(BandGradient<Wide<T>, false>(in), to, stream, false);
  });
}

}  // namespace itm::cuda
