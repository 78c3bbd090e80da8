#pragma once
// Tensors of the operators over all pairs of a small batch: scores in parts, ids, and gradients per
// row as autograd passes them.

#include <ATen/ops/empty.h>

#include "cuda/device.h"
#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

inline void check_rows(int64_t N, int64_t M) {
  TORCH_CHECK(N <= kMostRows && M <= kMostRows, "itm_kernels: ", N, " x ", M,
              " rows; CUDA kernels that store scores accept up to ", kMostRows, " rows per side");
}

// x y^T, or the pairwise values that `launch` computes, for batches small enough to store them.
struct StoredScores {
  Tensor parts;  // [parts, N, M] in fp32 or fp64
  ScoreParts from;

  StoredScores(const OnDevice& device, const Tensor& left, const Tensor& right,
               decltype(score_parts)* launch = score_parts) {
    const int64_t N = left.size(0), M = right.size(0);
    check_rows(N, M);
    const Tensor x = pad_to_four(left.unsqueeze(0)), y = pad_to_four(right.unsqueeze(0));
    const DistancePlan plan = plan_distances(1, N, M, x.size(2));
    parts = at::empty({plan.parts, N, M}, left.options().dtype(wide_type(left)));
    launch(type_of(left), matrix_of(x), matrix_of(y), x.size(2), plan, parts.mutable_data_ptr(),
           device.stream());
    device.check_launch();
    from = {parts.const_data_ptr(), plan.parts, N, M};
  }

  // The sum of all parts, [N, M].
  Tensor sum_of_parts(const OnDevice& device, Type type) const {
    if (from.parts == 1) return parts.select(0, 0);
    Tensor out = at::empty({from.N, from.M}, parts.options());
    add_parts(type, from, out.mutable_data_ptr(), device.stream());
    device.check_launch();
    return out;
  }
};

// Contiguous ids and positives, and their pointers.
struct PairIds {
  const OptionalTensor positive, image, text;

  PairIds(const OptionalTensor& positive_of, const OptionalTensor& image_ids,
          const OptionalTensor& text_ids)
      : positive(contiguous(positive_of)),
        image(contiguous(image_ids)),
        text(contiguous(text_ids)) {}

  Pairing at() const { return {ids_or_null(positive), ids_or_null(image), ids_or_null(text)}; }

  static OptionalTensor contiguous(const OptionalTensor& ids) {
    return ids.has_value() ? OptionalTensor(ids->contiguous()) : ids;
  }
};

// A gradient [N] in the precision of the computation, with its strides: expanded ones are not
// copied.
struct RowGradient {
  const Tensor numbers;

  RowGradient(const Tensor& grad, const Tensor& x) : numbers(grad.to(wide_type(x))) {}
  PerRow at() const { return {numbers.const_data_ptr(), numbers.stride(0)}; }
};

}  // namespace itm::cuda
