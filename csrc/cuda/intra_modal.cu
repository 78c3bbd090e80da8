// Launches the kernels of bounded sums over one modality.

#include "cuda/band.cuh"
#include "cuda/dispatch.cuh"

namespace itm::cuda {

namespace {

constexpr int64_t kFew = 132;  // multiprocessors: with fewer large tiles, small ones

template <typename Tile, typename Metric>
void launch_band(const Band<typename Tile::T>& band, const Panel& panel, void* of_rows,
                 void* of_columns, uint32_t* mask, int64_t words, void* stream) {
  using C = typename Tile::C;
  const BandResult<C> to{static_cast<C*>(of_rows), static_cast<C*>(of_columns), mask, words};
  in_launches(panel.blocks(), [&](int64_t first, int64_t count) {
    launch(band_kernel<Tile, Metric>, count, Tile::kThreads, Tile::kSharedBytes, stream, band,
           panel, first, to);
  });
}

}  // namespace

int64_t band_side(Type type, int64_t N) {
  const int64_t side = type == Type::kDouble ? 64 : 128, tiles = ceil_div(N, side);
  return tiles * (tiles + 1) / 2 < kFew ? 32 : side;
}

void find_finite(Type type, const Matrix& x, int64_t D, uint8_t* finite, void* stream) {
  constexpr int kWarps = 8;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    in_launches(ceil_div(x.rows, kWarps), [&](int64_t first, int64_t count) {
      launch(finite_kernel<T>, count, 32 * kWarps, 0, stream, rows_of<T>(x), D, first, finite);
    });
  });
}

void band(Type type, const BandOptions& options, const Matrix& x, int64_t D, const BandPanel& panel,
          void* stream) {
  const int64_t side = band_side(type, x.rows);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const Band<T> band{rows_of<T>(x),
                       D,
                       options.ids,
                       options.finite,
                       static_cast<const C*>(options.low),
                       static_cast<const C*>(options.high),
                       options.metric == Metric::kL2,
                       options.repel};
    const Panel tiles{panel.first, panel.count, ceil_div(x.rows, side), panel.triangle};
    with_metric(options.metric, [&](auto term) {
      using Term = decltype(term);
      const auto start =
          side == 32 ? launch_band<SmallTile<T>, Term> : launch_band<LargeTile<T>, Term>;
      start(band, tiles, panel.of_rows, panel.of_columns, panel.mask, panel.words, stream);
    });
    if (!panel.of_rows) return;
    constexpr int kThreads = 256;
    in_launches(ceil_div(x.rows, kThreads), [&](int64_t first, int64_t count) {
      launch(add_panel_kernel<C>, count, kThreads, 0, stream, tiles, x.rows, side,
             static_cast<const C*>(panel.of_rows), static_cast<const C*>(panel.of_columns), first,
             panel.total, static_cast<C*>(panel.out));
    });
  });
}

}  // namespace itm::cuda
