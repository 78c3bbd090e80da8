#pragma once
// Operators that compare rows by cosines take them raw in some backends; native kernels take unit
// rows, whose dot products are cosines.

#include <c10/util/Exception.h>

namespace itm {

inline void refuse_cosine(bool cosine) {
  TORCH_CHECK(!cosine, "itm_kernels: native kernels take unit rows; pass cosine=False");
}

}  // namespace itm
