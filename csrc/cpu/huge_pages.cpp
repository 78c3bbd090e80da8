// Memory for large results in pages of 2 MiB.
//
// glibc returns blocks of 32 MiB and more to the system as soon as they are freed, so that every
// call touches new pages: 8,192 of 4 KiB for 32 MiB, which take 12 to 15 ms of one core here, as
// much as half a product of 1024^3. Pages of 2 MiB, which Linux provides on request ("madvise", its
// usual setting), take 2.5 ms.

#include "cpu/huge_pages.h"

#include <ATen/ops/empty.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace itm::cpu {

Tensor empty_in_huge_pages(at::IntArrayRef shape, const at::TensorOptions& options) {
  const Tensor result = at::empty(shape, options);
#if defined(MADV_HUGEPAGE)
  constexpr size_t kReturnedToSystem = size_t{32} << 20;
  if (result.nbytes() >= kReturnedToSystem) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto data = reinterpret_cast<uintptr_t>(result.mutable_data_ptr());
    const uintptr_t first = (data + page - 1) / page * page;
    const uintptr_t last = (data + result.nbytes()) / page * page;
    // The result may be ignored: without huge pages the memory is the same, only slower.
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return result;
}

}  // namespace itm::cpu
