#pragma once
// Memory for large results.

#include "aten/wide.h"

namespace itm::cpu {

// Returns an uninitialised tensor, backed by huge pages if it is large. For results that the
// operator writes completely.
Tensor empty_in_huge_pages(at::IntArrayRef shape, const at::TensorOptions& options);

}  // namespace itm::cpu
