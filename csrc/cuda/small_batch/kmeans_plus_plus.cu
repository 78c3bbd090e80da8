// Launches k-means++.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/kmeans_plus_plus.cuh"
#include "cuda/small_batch/kmeans_plus_plus.h"

namespace itm::cuda {

void kmeans_plus_plus(Type type, const AnyRows& x, int64_t D, const ScoreParts& squares,
                      const KMeansPlusPlus& to, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    in_launches(to.problems, [&](int64_t first, int64_t count) {
      launch(kmeans_plus_plus_kernel<T>, count, kReductionThreads,
             2 * kAnchors * sizeof(Farthest<Wide<T>>), stream, first, x, D,
             Scores<Wide<T>>(squares), to);
    });
  });
}

}  // namespace itm::cuda
