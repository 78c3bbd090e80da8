// The loops for AVX512. The pragma replaces -march: it leaves the headers above it alone.
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define ITM_AVX512
#endif

namespace itm::cpu {
namespace isa_avx512 {
constexpr int64_t kVectorBytes = 64;
#include "cpu/table.inl"
}  // namespace isa_avx512
constinit const Kernels kernels_avx512 = isa_avx512::table();
}  // namespace itm::cpu
