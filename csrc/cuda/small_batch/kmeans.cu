// Launches k-means.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/kmeans.cuh"
#include "cuda/small_batch/kmeans.h"

namespace itm::cuda {

void kmeans(Type type, const Matrix& x, int64_t D, const Clustering& to, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const int64_t rows = to.problems * x.rows, spans = 2 * to.problems * to.clusters;
    const KMeans<T> in{rows_of<T>(x),
                       D,
                       to.clusters,
                       to.iterations,
                       static_cast<const C*>(to.product),
                       to.member,
                       static_cast<C*>(to.centroids),
                       to.assignment,
                       static_cast<C*>(to.score),
                       static_cast<C*>(to.half_square),
                       {to.order, to.span},
                       {to.order + rows, to.span + spans}};
    in_launches(to.problems, [&](int64_t first, int64_t count) {
      launch(kmeans_kernel<T>, count, kClusterThreads, 0, stream, in, first);
    });
  });
}

}  // namespace itm::cuda
