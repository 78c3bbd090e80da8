// Launches the products of a small batch.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/dot_products.cuh"

namespace itm::cuda {

namespace {

int64_t tiles_of(const ProductOf& product) {
  return ceil_div(product.x.rows, 32) * ceil_div(product.y.rows, 32);
}

}  // namespace

DistancePlan plan_products(const Products& products) {
  int64_t tiles = 0;
  for (int i = 0; i < products.count; ++i) tiles += tiles_of(products.of[i]);
  return share_depth(tiles, products.D);
}

void products(Type type, const Products& products, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    AllProducts<T> all{.of = {},
                       .count = products.count,
                       .tiles = 0,
                       .D = static_cast<int>(products.D),
                       .depth = static_cast<int>(products.plan.depth),
                       .ticket = products.ticket};
    for (int i = 0; i < products.count; ++i) {
      const ProductOf& own = products.of[i];
      all.of[i] = {rows_of<T>(own.x), rows_of<T>(own.y), static_cast<C*>(own.parts),
                   static_cast<C*>(own.x_squares), static_cast<C*>(own.y_squares)};
      all.tiles += static_cast<int>(tiles_of(own));
    }
    in_launches(all.tiles * products.plan.parts, [&](int64_t first, int64_t count) {
      launch(products_kernel<T>, count, SmallTile<T>::kThreads, SmallTile<T>::kSharedBytes, stream,
             all, first);
    });
  });
}

}  // namespace itm::cuda
