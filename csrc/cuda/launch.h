#pragma once
// Kernel launches: launch(kernel, blocks, threads, bytes of shared memory, stream, arguments...).
// From sm_90 on, the blocks of a launch may start while the launch before still runs.

#include "cuda/compat.cuh"

#ifdef __CUDACC__
#include <map>
#include <mutex>
#include <utility>
#endif

namespace itm::cuda {

#ifdef __CUDACC__
// Returns whether a kernel's code on the current device waits for the launch before. A new device
// may run code compiled for one before sm_90, which does not wait.
inline bool waits_for_launch_before(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, bool> known;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [at, is_new] = known.try_emplace({device, kernel}, false);
  cudaFuncAttributes found{};
  if (is_new && cudaFuncGetAttributes(&found, kernel) == cudaSuccess)
    at->second = found.ptxVersion >= 90;
  return at->second;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t, void* stream,
            Arguments... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = waits_for_launch_before(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
  // A failure is CUDA's last error, which the binding checks.
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}
constexpr int64_t kMostBlocks = 0x7fffffff;
#else
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, void*,
            Arguments... arguments) {
  emulator::launch(kernel, {static_cast<unsigned>(blocks)}, {static_cast<unsigned>(threads)},
                   shared_bytes, arguments...);
}
#ifndef ITM_MOST_BLOCKS
#define ITM_MOST_BLOCKS 7  // so that tests cover grids that take several launches
#endif
constexpr int64_t kMostBlocks = ITM_MOST_BLOCKS;
#endif

// Calls start(first, count) for ranges of blocks that fit into one launch. An empty grid makes no
// call: launching it is an error.
template <typename Start>
void in_launches(int64_t blocks, Start&& start) {
  for (int64_t first = 0; first < blocks; first += kMostBlocks)
    start(first, blocks - first < kMostBlocks ? blocks - first : kMostBlocks);
}

}  // namespace itm::cuda
