// k-means++ of a small batch, on CUDA: distances of all pairs, then the draws of every problem.

#include "cuda/small_batch/kmeans_plus_plus.h"
#include "cuda/small_batch/small_batch_binding.h"

namespace itm::cuda {
namespace {

Tensor start_centroids(const Tensor& x, const OptionalTensor& member, const Tensor& draws) {
  const OnDevice device(x);
  const StoredScores squares(device, x, x, square_parts);
  const Tensor members = member.has_value() ? member->contiguous() : Tensor();
  const Tensor numbers = draws.to(at::kFloat).contiguous();
  const int64_t B = members.defined() ? members.size(0) : 1, K = draws.size(0);
  Tensor centroids = at::empty({B, K, x.size(1)}, squares.parts.options());
  kmeans_plus_plus(type_of(x), any_rows_of(x), x.size(1), squares.from,
                   {.problems = B,
                    .clusters = K,
                    .member = members.defined() ? members.const_data_ptr<bool>() : nullptr,
                    .draws = numbers.const_data_ptr<float>(),
                    .centroids = centroids.mutable_data_ptr()},
                   device.stream());
  device.check_launch();
  return centroids;
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) { m.impl("kmeans_plus_plus", start_centroids); }

}  // namespace
}  // namespace itm::cuda
