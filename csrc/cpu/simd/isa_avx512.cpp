// The loops for AVX512. The pragma replaces -march and does not apply to the code above it. Without
// the pragma nothing is compiled for AVX512, and these loops are never chosen.
#include "cpu/simd/loop_table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// Checks the CPU and its operating system for every feature of the pragma.
static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define ITM_AVX512
#else
static bool runs_here() { return false; }
#endif

namespace itm::simd {
namespace isa_avx512 {
constexpr int64_t kVectorBytes = 64;
#include "cpu/simd/loop_table.inl"
}  // namespace isa_avx512
constinit const LoopTable loops_avx512 = isa_avx512::loop_table("AVX512", ::runs_here);
}  // namespace itm::simd
