#pragma once
// Loops on several threads.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#endif

namespace itm::cpu {

#if defined(__SANITIZE_THREAD__)
// The thread sanitizer does not see the barriers of OpenMP, whose library it has not compiled.
template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, Work&& work) {
  const int64_t tasks = (end - begin + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  const int64_t share = threads ? (end - begin + threads - 1) / threads : 0;
  std::vector<std::thread> running;
  for (int64_t first = begin; first < end; first += share)
    running.emplace_back(
        [&work, first, last = std::min(end, first + share)] { work(first, last); });
  for (std::thread& thread : running) thread.join();
}
#else
using at::parallel_for;
#endif

// Returns the items per task. Small loops run on one thread: waking another costs about 20,000
// additions.
inline int64_t grain(int64_t work_per_item) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work_per_item));
}

}  // namespace itm::cpu
