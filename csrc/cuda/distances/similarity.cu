// Launches the distance kernels.

#include "cuda/dispatch.cuh"
#include "cuda/distances/similarity.cuh"
#include "cuda/distances/similarity.h"
#include "cuda/launch.h"

namespace itm::cuda {

namespace {

// Blocks that fill a GPU of 132 multiprocessors. Below this many large tiles, small ones are used,
// and twice as many, since they have a quarter of the threads.
constexpr int64_t kFew = 132, kEnough = 264, kLeastDepth = 64;

template <typename Tile, typename Metric>
void launch_distances(const SplitRows<typename Tile::T>& in, bool take_root, void* out,
                      void* partial, void* stream) {
  const int64_t blocks = ceil_div(in.x.count, Tile::kRows) * ceil_div(in.y.count, Tile::kColumns) *
                         in.batch * in.parts;
  in_launches(blocks, [&](int64_t first, int64_t count) {
    launch(distance_kernel<Tile, Metric>, count, Tile::kThreads, Tile::kSharedBytes, stream, in,
           take_root, first, static_cast<typename Tile::T*>(out),
           static_cast<typename Tile::C*>(partial));
  });
}

template <typename T>
void launch_addition(const void* partial, int64_t parts, int64_t size, bool take_root, void* out,
                     void* stream) {
  constexpr int kThreads = 256;
  in_launches(ceil_div(size, kThreads), [&](int64_t first, int64_t count) {
    launch(add_parts_kernel<T>, count, kThreads, 0, stream, static_cast<const Wide<T>*>(partial),
           parts, size, take_root, first, static_cast<T*>(out));
  });
}

template <typename Term>
void launch_parts(Type type, const Matrix& x, const Matrix& y, int64_t D, const DistancePlan& plan,
                  void* parts, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const SplitRows<T> in{rows_of<T>(x), rows_of<T>(y), 1, D, plan.parts, plan.depth};
    launch_distances<SmallTile<T>, Term>(in, false, nullptr, parts, stream);
  });
}

}  // namespace

DistancePlan plan_distances(int64_t batch, int64_t N, int64_t M, int64_t D) {
  if (ceil_div(N, 128) * ceil_div(M, 128) * batch >= kFew) return {false, 1, D};
  return split_depth(ceil_div(N, 32) * ceil_div(M, 32) * batch, D);
}

DistancePlan split_depth(int64_t tiles, int64_t D) {
  const int64_t most = ceil_div(D, kLeastDepth), wanted = kEnough / (tiles > 0 ? tiles : 1);
  const int64_t parts = wanted < 1 ? 1 : wanted < most ? wanted : most;
  const int64_t depth = ceil_div(ceil_div(D, parts), 16) * 16;
  return {true, ceil_div(D, depth), depth};
}

void distances(Type type, Metric metric, const Matrix& x, const Matrix& y, int64_t batch, int64_t D,
               const DistancePlan& plan, void* out, void* partial, void* stream) {
  const bool take_root = metric == Metric::kL2;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const SplitRows<T> in{rows_of<T>(x), rows_of<T>(y), batch, D, plan.parts, plan.depth};
    with_metric(metric, [&](auto term) {
      using Term = decltype(term);
      if (plan.small)
        launch_distances<SmallTile<T>, Term>(in, take_root, out, partial, stream);
      else
        launch_distances<LargeTile<T>, Term>(in, take_root, out, partial, stream);
    });
    if (plan.parts > 1)
      launch_addition<T>(partial, plan.parts, batch * x.rows * y.rows, take_root, out, stream);
  });
}

void score_parts(Type type, const Matrix& x, const Matrix& y, int64_t D, const DistancePlan& plan,
                 void* parts, void* stream) {
  launch_parts<Product>(type, x, y, D, plan, parts, stream);
}

void square_parts(Type type, const Matrix& x, const Matrix& y, int64_t D, const DistancePlan& plan,
                  void* parts, void* stream) {
  launch_parts<Square>(type, x, y, D, plan, parts, stream);
}

void add_parts(Type type, const ScoreParts& scores, void* out, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    launch_addition<C>(scores.data, scores.parts, scores.N * scores.M, false, out, stream);
  });
}

}  // namespace itm::cuda
