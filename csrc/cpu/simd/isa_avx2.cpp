// The loops for AVX2. The pragma replaces -march: it leaves what stands above it alone. Without it
// nothing is compiled for AVX2, and these loops are never chosen.
#include "cpu/simd/loop_table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// The CPU and its operating system are asked for every feature that the pragma names.
static bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#pragma GCC target("avx2,fma")
#define ITM_AVX2
#else
static bool runs_here() { return false; }
#endif

namespace itm::cpu {
namespace isa_avx2 {
constexpr int64_t kVectorBytes = 32;
#include "cpu/simd/loop_table.inl"
}  // namespace isa_avx2
constinit const Kernels kernels_avx2 = isa_avx2::table("AVX2", ::runs_here);
}  // namespace itm::cpu
