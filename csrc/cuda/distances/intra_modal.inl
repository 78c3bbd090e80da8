// Launches bounded sums for one type of rows.

#include "cuda/dispatch.cuh"
#include "cuda/distances/intra_modal.cuh"
#include "cuda/distances/intra_modal.h"
#include "cuda/launch.h"

namespace itm::cuda {

template <typename Tile, typename Metric>
void launch_band(const Band<typename Tile::T>& band, const Panel& panel, const BandPanel& to,
                 void* stream) {
  using C = typename Tile::C;
  const BandResult<C> result{static_cast<C*>(to.of_rows), static_cast<C*>(to.of_columns), to.mask,
                             to.words};
  in_launches(panel.blocks(), [&](int64_t first, int64_t count) {
    launch(band_kernel<Tile, Metric>, count, Tile::kThreads, Tile::kSharedBytes, stream, band,
           panel, first, result);
  });
}

template <typename T>
void band_of(const BandOptions& options, const Matrix& x, int64_t D, int64_t side,
             const BandPanel& panel, void* stream) {
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
    start(band, tiles, panel, stream);
  });
  if (!panel.of_rows) return;
  constexpr int kThreads = 256;
  in_launches(ceil_div(x.rows, kThreads), [&](int64_t first, int64_t count) {
    launch(add_panel_kernel<C>, count, kThreads, 0, stream, tiles, x.rows, side,
           static_cast<const C*>(panel.of_rows), static_cast<const C*>(panel.of_columns), first,
           panel.total, static_cast<C*>(panel.out));
  });
}

}  // namespace itm::cuda
