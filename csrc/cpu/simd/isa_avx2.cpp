// The loops for AVX2. The pragma replaces -march and does not apply to the code above it. Without
// the pragma nothing is compiled for AVX2, and these loops are never chosen.
#include "cpu/simd/loop_table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// Checks the CPU and its operating system for every feature of the pragma.
static bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#pragma GCC target("avx2,fma")
#define ITM_AVX2
#else
static bool runs_here() { return false; }
#endif

namespace itm::simd {
namespace isa_avx2 {
constexpr int64_t kVectorBytes = 32;
#include "cpu/simd/loop_table.inl"
}  // namespace isa_avx2
constinit const LoopTable loops_avx2 = isa_avx2::loop_table("AVX2", ::runs_here);
}  // namespace itm::simd
