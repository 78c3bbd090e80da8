#pragma once
// The precision and layout in which the kernels of both devices read a tensor.

#include <ATen/core/Tensor.h>

namespace itm {

using at::Tensor;

// Returns x as a contiguous tensor, fp16 and bf16 converted to fp32.
Tensor wide(const Tensor& x);

}  // namespace itm
