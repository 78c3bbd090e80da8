// Launches bounded sums from stored scores.

#include "cuda/dispatch.cuh"
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

void stored_pull(Type type, const StoredPull& pull, int64_t columns, void* stream) {
  const Matrix nothing{pull.y.data, 0, pull.y.stride, 0};
  const WeightedRows to{pull.y, nothing, columns, pull.out, nullptr};
  if (pull.distance)
    return with_wide_type(type, [&](auto zero) {
      using C = decltype(zero);
      launch_weighted_pairs<C>(BandPairs<C, true>(pull), to, stream, false);
    });
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    launch_weighted_pairs<T>(BandPairs<Wide<T>, false>(pull), to, stream, false);
  });
}

}  // namespace itm::cuda
