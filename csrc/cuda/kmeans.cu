// Launches k-means.

#include "cuda/dispatch.cuh"
#include "cuda/kmeans.cuh"

namespace itm::cuda {

void kmeans(Type type, const Matrix& x, int64_t D, const Clustering& to, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const KMeans<T> in{rows_of<T>(x),      D,
                       to.clusters,        to.iterations,
                       to.member,          static_cast<C*>(to.centroids),
                       to.assignment,      static_cast<C*>(to.half_square),
                       {to.order, to.span}};
    const bool fits = to.clusters * D <= CentroidsInShared<C>::kMost;
    const auto kernel =
        fits ? kmeans_kernel<T, CentroidsInShared<C>> : kmeans_kernel<T, CentroidsInGlobal<C>>;
    in_launches(to.problems, [&](int64_t first, int64_t count) {
      launch(kernel, count, kClusterThreads, fits ? 48 << 10 : 0, stream, in, first);
    });
  });
}

}  // namespace itm::cuda
