// The loops for any processor of the architecture that the compiler was asked for.
#include "cpu/simd/loop_table.h"

static bool runs_here() { return true; }

namespace itm::cpu {
namespace isa_default {
constexpr int64_t kVectorBytes = 16;
#include "cpu/simd/loop_table.inl"
}  // namespace isa_default
constinit const Kernels kernels_default = isa_default::table("DEFAULT", ::runs_here);
}  // namespace itm::cpu
