#pragma once
// Numbers of all anchors added up in the launch that makes them: the block that comes last adds
// them, in one order. Which block is last varies from run to run; the sum does not.

#include "cuda/compat.cuh"
#include "cuda/small_batch/small_batch.h"
#include "cuda/warp.cuh"

namespace itm::cuda {

// Whether all other blocks of a grid have come here; what they wrote before is then there to read.
// `ticket` is 0 when the launch begins. All threads of a block come here, once.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, int64_t blocks) {
  __threadfence();
  __syncthreads();  // the block has written all it will
  const bool last = threadIdx.x == 0 && atomicAdd(ticket, 1u) + 1 == static_cast<unsigned>(blocks);
  const bool found = __syncthreads_or(last);
  __threadfence();
  return found;
}

// The sum of what every anchor adds to a number, times a factor, by one warp; null without one.
template <typename C, typename Part = C>
struct ScalarSum {
  const Part* parts = nullptr;
  C* sum = nullptr;
  double factor = 1;

  __device__ __forceinline__ void add(int count) const {
    if (!parts) return;
    constexpr int kTogether = 16;  // whose loads are on their way
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

// A fold's numbers in the end, for its last block to add up; without a ticket nothing.
template <typename C>
struct GridTotal {
  unsigned* ticket;
  int64_t blocks;  // of all launches of the fold
  ScalarSum<C> sum;

  GridTotal(const Total& to, int64_t blocks, const C* parts)
      : ticket(to.ticket), blocks(blocks), sum{parts, static_cast<C*>(to.total), to.weight} {}

  // All threads of all blocks come here.
  __device__ __forceinline__ void add(int count) const {
    if (ticket && is_last_block(ticket, blocks) && warp() == 0) sum.add(count);
  }
};

}  // namespace itm::cuda
