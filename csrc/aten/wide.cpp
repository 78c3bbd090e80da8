#include "aten/wide.h"

namespace itm {

Tensor wide(const Tensor& x) {
  const bool half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  return (half ? x.to(at::kFloat) : x).contiguous();
}

}  // namespace itm
