// Memory for large results. glibc gives blocks of 32 MiB and more back to the system as soon as
// they are freed, so that every call meets pages that were never touched: 8,192 of 4 KiB for 32
// MiB, which are 12 to 15 ms of one core here, as much as half a product of 1024^3. In pages of 2
// MiB, which Linux has for those who ask ("madvise", its usual setting), they are 2.5 ms.

#include <ATen/ops/empty.h>

#include "cpu/score_tiles.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace itm {

Tensor room(at::IntArrayRef shape, const at::TensorOptions& options) {
  const Tensor result = at::empty(shape, options);
#if defined(MADV_HUGEPAGE)
  constexpr size_t kGivenBack = size_t{32} << 20;
  if (result.nbytes() >= kGivenBack) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto data = reinterpret_cast<uintptr_t>(result.mutable_data_ptr());
    const uintptr_t first = (data + page - 1) / page * page;
    const uintptr_t last = (data + result.nbytes()) / page * page;
    // Advice: where it is not taken, nothing changes.
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return result;
}

}  // namespace itm
