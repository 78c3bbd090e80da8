// Launches k-means++.

#include "cuda/dispatch.cuh"
#include "cuda/kmeans_plus_plus.cuh"

namespace itm::cuda {

void kmeans_plus_plus(Type type, const AnyRows& x, int64_t D, const ScoreParts& squares,
                      const Drawing& to, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    launch_fold(kmeans_plus_plus_kernel<T>, to.problems, 0, stream, x, D, Scores<Wide<T>>(squares),
                to);
  });
}

}  // namespace itm::cuda
