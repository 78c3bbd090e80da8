#pragma once
// Sums of values that are stored in parts. A load from L2 takes as long as hundreds of additions,
// so the parts of several values are all requested before the first is used. Parts are added in
// increasing order, however many are loaded at once.

#include "cuda/compat.cuh"

namespace itm::cuda {

// Adds the next parts, of which `left` remain; from[k] points to value k of the first.
template <int kParts, typename C, typename Index, int kCount>
__device__ __forceinline__ void add_next_parts(const C* const (&from)[kCount], Index left,
                                               Index step, C (&sum)[kCount]) {
  C part[kParts][kCount];
#pragma unroll
  for (int p = 0; p < kParts; ++p)
#pragma unroll
    for (int k = 0; k < kCount; ++k) part[p][k] = p < left ? from[k][p * step] : C(0);
#pragma unroll
  for (int p = 0; p < kParts; ++p)
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum[k] += part[p][k];
}

// Sums the values at at[k] over parts that are a step apart. 16 parts are the split of D = 1024 for
// 128 pairs. Each thread has 128 bytes in flight: for 256 threads this is twice what L2 delivers to
// a multiprocessor in that time, and it fits into registers.
template <typename C, typename Index, int kCount>
__device__ __forceinline__ void read_parts(const C* data, Index parts, Index step,
                                           const Index (&at)[kCount], C (&sum)[kCount]) {
  constexpr int kFit = 128 / sizeof(C) / kCount, kMost = kFit < 16 ? kFit : 16, kFew = 4;
  const C* from[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) from[k] = data + at[k], sum[k] = 0;
  if (parts == 1) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum[k] = *from[k];
  } else if (kFew < kMost && parts <= kFew) {
    add_next_parts<kFew>(from, parts, step, sum);
  } else {
#pragma unroll 1
    for (Index left = parts; left > 0; left -= kMost) {
      add_next_parts<kMost>(from, left, step, sum);
#pragma unroll
      for (int k = 0; k < kCount; ++k) from[k] += kMost * step;
    }
  }
}

}  // namespace itm::cuda
