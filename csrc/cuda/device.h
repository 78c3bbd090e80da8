#pragma once
// ATen helpers of the CUDA operators. With ITM_EMULATED, the same files define operators that run
// the same kernels on the host: tests/support/emulator has no device, no stream, and its own
// namespace.

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <string_view>

#include "aten/batches.h"
#include "aten/optional_ids.h"
#include "cuda/operands.h"

#ifdef ITM_EMULATED
#define ITM_LIBRARY itm_emulated
#define ITM_KEY CPU
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define ITM_LIBRARY itm_native
#define ITM_KEY CUDA
#endif

namespace itm::cuda {

// Makes a tensor's device current and gives access to its stream.
#ifdef ITM_EMULATED
struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
  void check_launch() const {}
};
#else
struct OnDevice {
  const c10::cuda::CUDAGuard guard;
  explicit OnDevice(const Tensor& like) : guard(like.device()) {}
  void* stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }
  void check_launch() const { C10_CUDA_KERNEL_LAUNCH_CHECK(); }
};
#endif

inline Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return Type::kDouble;
    case at::kHalf:
      return Type::kHalf;
    case at::kBFloat16:
      return Type::kBFloat16;
    default:
      TORCH_CHECK(x.scalar_type() == at::kFloat, "itm_kernels: no kernel for ", x.scalar_type());
      return Type::kFloat;
  }
}

inline at::ScalarType wide_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline Metric metric_of(std::string_view name) {
  return name == "l1" ? Metric::kL1 : name == "l2" ? Metric::kL2 : Metric::kSquare;
}

// Rows [B, N, D] as the kernels require them, padded to a multiple of 4 columns; rows that are not
// are copied, with zeros. A matrix that is repeated over a batch is copied once.
inline Tensor pad_to_four(const Tensor& x) {
  const int64_t D = x.size(2), padded = (D + 3) / 4 * 4;
  const bool repeated = x.size(0) > 1 && x.stride(0) == 0;
  const bool fits = D == padded && x.stride(2) == 1 && x.stride(1) % 4 == 0 &&
                    x.stride(0) % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  if (fits) return x;
  if (repeated) return pad_to_four(x.narrow(0, 0, 1)).expand({x.size(0), x.size(1), padded});
  Tensor copy = at::zeros({x.size(0), x.size(1), padded}, x.options());
  copy.narrow(2, 0, D).copy_(x);
  return copy;
}

inline Matrix matrix_of(const Tensor& x) {  // [B, N, D], padded
  return {x.const_data_ptr(), x.size(1), x.stride(1), x.stride(0)};
}

inline AnyRows any_rows_of(const Tensor& x) {  // [N, D]
  return {x.const_data_ptr(), x.size(0), x.stride(0), x.stride(1)};
}

}  // namespace itm::cuda
