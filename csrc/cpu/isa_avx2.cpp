// The loops for AVX2. The pragma replaces -march: it leaves the headers above it alone.
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c")
#endif

namespace itm::cpu {
namespace isa_avx2 {
constexpr int64_t kVectorBytes = 32;
#include "cpu/table.inl"
}  // namespace isa_avx2
constinit const Kernels kernels_avx2 = isa_avx2::table();
}  // namespace itm::cpu
