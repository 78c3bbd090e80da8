// k-means of a small batch, on CUDA: dot products of all rows, then one launch for all iterations
// of all problems, without host synchronisation.

#include <ATen/ops/constant_pad_nd.h>

#include "cuda/small_batch/kmeans.h"
#include "cuda/small_batch/small_batch_binding.h"

namespace itm::cuda {
namespace {

std::tuple<Tensor, Tensor> kmeans_of(const Tensor& x, const OptionalTensor& member,
                                     const Tensor& centroids, int64_t iterations) {
  const OnDevice device(x);
  const Tensor product = StoredScores(device, x, x).sum_of_parts(device, type_of(x));
  const Tensor rows = pad_to_four(x.unsqueeze(0));
  const int64_t B = centroids.size(0), K = centroids.size(1), M = x.size(0), D = x.size(1);
  Tensor found = centroids.to(wide_type(x), /*non_blocking=*/false, /*copy=*/true,
                              at::MemoryFormat::Contiguous);
  if (rows.size(2) != D) found = at::constant_pad_nd(found, {0, rows.size(2) - D});
  const Tensor members = member.has_value() ? member->contiguous() : Tensor();
  Tensor assignment = at::empty({B, M}, x.options().dtype(at::kLong));
  const Tensor order = at::empty({2, B, M}, x.options().dtype(at::kInt));
  const Tensor span = at::empty({2, B, K, 2}, x.options().dtype(at::kInt));
  const Tensor score = at::empty({B, K, M}, found.options());
  const Tensor half_square = at::empty({B, K}, found.options());
  kmeans(type_of(x), matrix_of(rows), rows.size(2),
         {.problems = B,
          .clusters = K,
          .iterations = iterations,
          .product = product.const_data_ptr(),
          .member = members.defined() ? members.const_data_ptr<bool>() : nullptr,
          .centroids = found.mutable_data_ptr(),
          .assignment = assignment.mutable_data_ptr<int64_t>(),
          .score = score.mutable_data_ptr(),
          .half_square = half_square.mutable_data_ptr(),
          .order = order.mutable_data_ptr<int32_t>(),
          .span = span.mutable_data_ptr<int32_t>()},
         device.stream());
  device.check_launch();
  return {assignment, found.narrow(2, 0, D).contiguous()};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) { m.impl("kmeans", kmeans_of); }

}  // namespace
}  // namespace itm::cuda
