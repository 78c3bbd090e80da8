// Launches the dot products of a small batch.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/dot_products.cuh"

namespace itm::cuda {

namespace {

int64_t tiles_of(const DotProduct& product) {
  return ceil_div(product.x.rows, 32) * ceil_div(product.y.rows, 32);
}

}  // namespace

DistancePlan plan_dot_products(const DotProducts& grid) {
  int64_t tiles = 0;
  for (int i = 0; i < grid.count; ++i) tiles += tiles_of(grid.of[i]);
  return split_depth(tiles, grid.D);
}

void dot_products(Type type, const DotProducts& grid, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    DotProductsGrid<T> all{.of = {},
                           .count = grid.count,
                           .tiles = 0,
                           .D = static_cast<int>(grid.D),
                           .depth = static_cast<int>(grid.plan.depth),
                           .ticket = grid.ticket};
    for (int i = 0; i < grid.count; ++i) {
      const DotProduct& own = grid.of[i];
      all.of[i] = {rows_of<T>(own.x), rows_of<T>(own.y), static_cast<C*>(own.parts),
                   static_cast<C*>(own.x_squares), static_cast<C*>(own.y_squares)};
      all.tiles += static_cast<int>(tiles_of(own));
    }
    in_launches(all.tiles * grid.plan.parts, [&](int64_t first, int64_t count) {
      launch(dot_products_kernel<T>, count, SmallTile<T>::kThreads, SmallTile<T>::kSharedBytes,
             stream, all, first);
    });
  });
}

}  // namespace itm::cuda
