// Launches bounded sums from stored scores.

#include "cuda/dispatch.cuh"
#include "cuda/stored_band.cuh"

namespace itm::cuda {

void stored_band(Type type, const StoredBand& band, void* stream) {
  with_wide_type(type, [&](auto zero) {
    in_launches(ceil_div(band.scores.N, kRowWarps), [&](int64_t first, int64_t count) {
      launch(stored_band_kernel<decltype(zero)>, count, kRowThreads, 0, stream, band,
             Scores<decltype(zero)>(band.scores), first);
    });
  });
}

void stored_pull(Type type, const StoredPull& pull, int64_t D, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    in_launches(pull.y.rows, [&](int64_t first, int64_t count) {
      launch(stored_pull_kernel<C>, count, kRowThreads, kMostRows * sizeof(C), stream, pull,
             Numbers<C>(pull.grad), rows_of<C>(pull.y), D, first);
    });
  });
}

}  // namespace itm::cuda
