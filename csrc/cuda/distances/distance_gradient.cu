// Launches the gradient of distances.

#include "cuda/dispatch.cuh"
#include "cuda/distances/distance_gradient.cuh"
#include "cuda/distances/distance_gradient.h"
#include "cuda/launch.h"

namespace itm::cuda {

namespace {

constexpr int64_t kFew = 132;  // multiprocessors; with fewer large blocks, small blocks are used

template <typename Tile, typename Weights>
void launch_distance_gradient(Metric metric, const Rows<typename Tile::T>& x,
                              const Rows<typename Tile::T>& y, const Weights& weights,
                              int64_t batch, int64_t D, void* out, void* stream) {
  const int64_t blocks = ceil_div(D, Tile::kColumns) * ceil_div(x.count, Tile::kRows) * batch;
  const auto kernel = metric == Metric::kL1 ? distance_gradient_kernel<Tile, Sign, Weights>
                                            : distance_gradient_kernel<Tile, Difference, Weights>;
  in_launches(blocks, [&](int64_t first, int64_t count) {
    launch(kernel, count, Tile::kThreads, Tile::kSharedBytes, stream, x, y, weights, D, first,
           static_cast<typename Tile::C*>(out));
  });
}

}  // namespace

void distance_gradient(Type type, Metric metric, const Matrix& x, const Matrix& y,
                       const PairWeights& weights, int64_t batch, int64_t D, void* out,
                       void* stream) {
  const bool small = ceil_div(x.rows, 64) * ceil_div(D, 128) * batch < kFew;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto start = [&](const auto& source) {
      if (small)
        launch_distance_gradient<SmallGradientTile<T>>(metric, rows_of<T>(x), rows_of<T>(y), source,
                                                       batch, D, out, stream);
      else
        launch_distance_gradient<LargeGradientTile<T>>(metric, rows_of<T>(x), rows_of<T>(y), source,
                                                       batch, D, out, stream);
    };
    if (weights.bits)
      start(BitWeights<T>{weights.bits, weights.row_stride,
                          static_cast<const Wide<T>*>(weights.row_weight),
                          static_cast<const Wide<T>*>(weights.column_weight)});
    else
      start(DenseWeights<T>{static_cast<const T*>(weights.data), weights.row_stride,
                            weights.column_stride, weights.batch_stride});
  });
}

}  // namespace itm::cuda
