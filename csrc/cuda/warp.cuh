#pragma once
// Operations of one warp.

#include "cuda/compat.cuh"

namespace itm::cuda {

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }

template <typename C>
__device__ __forceinline__ C warp_sum(C value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

}  // namespace itm::cuda
