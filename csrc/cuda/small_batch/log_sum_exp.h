#pragma once
// Launchers of log-sum-exp over rows and columns.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// Log-sum-exp of rows [N] and columns [M] relative to their highest logits (0 where the highest is
// not finite); the logits of positives [M], or null.
template <typename Pointer>
struct ExpSums {
  Pointer row, column, row_highest, column_highest, positive;
};

// log_sum_exp_forward; scale is one value on the device.
void log_sum_exp(Type type, const ScoreParts& scores, const Pairing& pairing, const void* scale,
                 const ExpSums<void*>& to, void* kept, void* stream);
void log_sum_exp_gradient(Type type, const PerRow& grad_row, const PerRow& grad_column,
                          const PerRow& grad_positive, const ExpSums<const void*>& sums,
                          const ScoreParts& scores, const Pairing& pairing, const void* scale,
                          const Workspace& work, const SideGradients& to, void* grad_scale,
                          void* stream);

}  // namespace itm::cuda
