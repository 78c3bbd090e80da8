// Launches InfoCMR as one operator.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/info_cmr_gradient.cuh"

namespace itm::cuda {

void cmr_unit_rows(Type type, const CmrUnitRows& sources, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const RowSplit split(sources.of[0].rows + sources.of[1].rows + sources.of[2].rows,
                         sources.padded);
    in_launches(split.blocks(), [&](int64_t first, int64_t count) {
      launch(cmr_unit_rows_kernel<T>, count, kRowThreads, kRowWarps * sizeof(double), stream,
             sources, split, first);
    });
  });
}

void cmr_cluster(const Cmr& in, void* stream) {
  in_launches(2, [&](int64_t first, int64_t count) {
    launch(cmr_cluster_kernel, count, kClusterThreads, 2 * kClusterWarps * sizeof(Farthest<double>),
           stream, in.image, in.text, in.clusters, in.iterations, first);
  });
  if (!in.image.inverse) return;
  in_launches(2 * in.clusters, [&](int64_t first, int64_t count) {
    launch(cmr_kam_solve_kernel, count, kSystemThreads, SystemInShared::kNumbers * sizeof(double),
           stream, in.image, in.text, in.clusters, 1 / (in.sigma * in.sigma), in.ridge, first);
  });
}

void cmr_total(Type type, const Cmr& in, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    in_launches(in.image.rows + in.text.rows, [&](int64_t first, int64_t count) {
      launch(cmr_total_kernel<C>, count, kReductionThreads, kCmrShared * sizeof(double), stream, in,
             DeviceScalar<C>(in.scale), first);
    });
  });
}

void cmr_score_gradient(Type type, const Cmr& in, const CmrScoreWeights& to, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    in_launches(in.image.rows + in.text.rows, [&](int64_t first, int64_t count) {
      launch(cmr_score_gradient_kernel<C>, count, kReductionThreads, kAnchors * sizeof(double),
             stream, in, DeviceScalar<C>(in.scale), to, first);
    });
  });
}

void cmr_gradient(Type type, const CmrGradient& in, const SideGradients& to, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const auto at = [](const void* numbers) { return static_cast<const C*>(numbers); };
    CmrScoreGradient<C> pairs{};
    pairs.of_image = at(in.of_image), pairs.of_text = at(in.of_text);
    pairs.along_rows = at(in.along), pairs.inverses = at(in.inverse);
    pairs.grad = at(in.grad), pairs.of_scale = at(in.of_scale);
    pairs.to_scale = static_cast<C*>(in.to_scale);
    pairs.noise = in.noise;
    pairs.N = static_cast<int>(to.x.rows), pairs.M = static_cast<int>(to.y.rows);
    launch_row_gradient<T>(pairs, to, stream, true);
  });
}

}  // namespace itm::cuda
