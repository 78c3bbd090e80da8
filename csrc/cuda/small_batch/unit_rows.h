#pragma once
// Launchers of row normalisation. Norms, unit rows and their gradients are in fp32, or fp64 for
// fp64.

#include "cuda/operands.h"

namespace itm::cuda {

// unit [rows, D] = x / max(|x|, 1e-12), or 0 where |x| is 0, and norm [rows] = |x|.
void unit_rows(Type type, const AnyRows& x, int64_t D, void* unit, void* norm, void* stream);

// out [rows, D], in the type of the rows, = the gradient of x from that of its unit rows.
void unit_rows_gradient(Type type, const AnyRows& grad, int64_t D, const void* unit,
                        const void* norm, void* out, void* stream);

}  // namespace itm::cuda
