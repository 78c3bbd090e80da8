#pragma once
// Tensors of backward passes over all pairs of a small batch: scores that were kept or are
// recomputed, a workspace, and the gradients of rows.

#include "cuda/small_batch/small_batch_binding.h"

namespace itm::cuda {

// The scores of a forward pass: kept [N, M], or recomputed.
struct KeptScores {
  const Tensor kept;
  std::optional<StoredScores> recomputed;
  ScoreParts from;

  KeptScores(const OnDevice& device, const Tensor& scores, const Tensor& x, const Tensor& y)
      : kept(scores.contiguous()), from{kept.const_data_ptr(), 1, x.size(0), y.size(0)} {
    if (kept.numel()) return;
    recomputed.emplace(device, x, y);
    from = recomputed->from;
  }
};

// Scores [N, M] for the backward pass, or an empty matrix if they are not to be kept.
inline Tensor scores_to_keep(bool keep, const StoredScores& scores) {
  return at::empty({keep ? scores.from.N : 0, keep ? scores.from.M : 0}, scores.parts.options());
}
inline void* data_or_null(const Tensor& scores) {
  return scores.numel() ? scores.mutable_data_ptr() : nullptr;
}

struct BothSides {
  const Tensor x, y;  // padded
  Tensor to_x, to_y, weights, of_rows, of_columns;

  BothSides(const Tensor& left, const Tensor& right)
      : x(pad_to_four(left.unsqueeze(0))),
        y(pad_to_four(right.unsqueeze(0))),
        to_x(at::empty(left.sizes(), left.options())),
        to_y(at::empty(right.sizes(), right.options())) {
    const int64_t N = left.size(0), M = right.size(0);
    const auto like = left.options().dtype(wide_type(left));
    weights = at::empty({N, M}, like);
    of_rows = at::empty({std::max(N, M)}, like);
    of_columns = at::empty({std::max(N, M)}, like);
  }
  Workspace work() const {
    return {weights.mutable_data_ptr(), of_rows.mutable_data_ptr(), of_columns.mutable_data_ptr()};
  }
  SideGradients rows() const {
    return {matrix_of(x), matrix_of(y), to_x.size(1), to_x.mutable_data_ptr(),
            to_y.mutable_data_ptr()};
  }
};

}  // namespace itm::cuda
