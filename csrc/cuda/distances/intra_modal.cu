// Launches bounded sums over one modality.

#include "cuda/dispatch.cuh"
#include "cuda/distances/intra_modal.cuh"
#include "cuda/distances/intra_modal.h"
#include "cuda/launch.h"

namespace itm::cuda {

namespace {
constexpr int64_t kFew = 132;  // multiprocessors; with fewer large tiles, small tiles are used
}

int64_t band_side(Type type, int64_t N) {
  const int64_t side = type == Type::kDouble ? 64 : 128, tiles = ceil_div(N, side);
  return tiles * (tiles + 1) / 2 < kFew ? 32 : side;
}

void find_finite(Type type, const Matrix& x, int64_t D, uint8_t* finite, void* stream) {
  constexpr int kWarps = 8;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    in_launches(ceil_div(x.rows, kWarps), [&](int64_t first, int64_t count) {
      launch(finite_rows_kernel<T>, count, 32 * kWarps, 0, stream, rows_of<T>(x), D, first, finite);
    });
  });
}

void band(Type type, const BandOptions& options, const Matrix& x, int64_t D, const BandPanel& panel,
          void* stream) {
  with_type(type, [&](auto zero) {
    band_of<decltype(zero)>(options, x, D, band_side(type, x.rows), panel, stream);
  });
}

}  // namespace itm::cuda
