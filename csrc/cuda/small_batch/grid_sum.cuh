#pragma once
// Sums over all anchors, in the launch that computes the terms: the last block to finish adds them,
// in a fixed order. Which block is last varies from run to run; the sum does not.

#include "cuda/compat.cuh"
#include "cuda/small_batch/small_batch.h"
#include "cuda/warp.cuh"

namespace itm::cuda {

// Returns whether this is the last block of the grid to arrive; if so, everything that the others
// wrote before is visible. `ticket` is 0 before the launch. All threads of a block call this once.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, int64_t blocks) {
  __threadfence();
  __syncthreads();  // the block has written all its results
  const bool last = threadIdx.x == 0 && atomicAdd(ticket, 1u) + 1 == static_cast<unsigned>(blocks);
  const bool found = __syncthreads_or(last);
  __threadfence();
  return found;
}

// The sum of one value per anchor, times a factor, by one warp. Null parts make it a no-op.
template <typename C, typename Part = C>
struct ScalarSum {
  const Part* parts = nullptr;
  C* sum = nullptr;
  double factor = 1;

  __device__ __forceinline__ void add(int count) const {
    if (!parts) return;
    constexpr int kTogether = 16;  // loads in flight per lane
    double total = 0;
#pragma unroll 1
    for (int first = lane(); first < count; first += 32 * kTogether) {
      Part part[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k)
        part[k] = first + 32 * k < count ? parts[first + 32 * k] : Part(0);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) total += part[k];
    }
    total = warp_sum(total);
    if (lane() == 0) *sum = static_cast<C>(factor * total);
  }
};

// The total of a reduction's values, added by its last block. A null ticket makes it a no-op.
template <typename C>
struct GridTotal {
  unsigned* ticket;
  int64_t blocks;  // in all launches of the reduction
  ScalarSum<C> sum;

  GridTotal(const Total& to, int64_t blocks, const C* parts)
      : ticket(to.ticket), blocks(blocks), sum{parts, static_cast<C*>(to.total), to.weight} {}

  // Called by all threads of all blocks.
  __device__ __forceinline__ void add(int count) const {
    if (ticket && is_last_block(ticket, blocks) && warp() == 0) sum.add(count);
  }
};

}  // namespace itm::cuda
