#pragma once
// Numbers that were summed in parts. A load from L2 takes as long as hundreds of additions: those
// of all parts of several numbers are on their way before the first is waited for. Parts are added
// in their order, however many are loaded at once.

#include "cuda/compat.cuh"

namespace itm::cuda {

// The next parts, of which only so many are left; from[k] is where number k of the first lies.
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

// The sums of numbers at at[k] of parts that lie a step apart. 16 parts are what D = 1024 of 128
// pairs is shared out into. 128 bytes a thread are on their way at once: of 256 threads they are
// twice what L2 delivers to a multiprocessor meanwhile, and what registers hold.
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
