// The loops for any processor of the target architecture.
#include "cpu/simd/loop_table.h"

static bool runs_here() { return true; }

namespace itm::simd {
namespace isa_default {
constexpr int64_t kVectorBytes = 16;
#include "cpu/simd/loop_table.inl"
}  // namespace isa_default
constinit const LoopTable loops_default = isa_default::loop_table("DEFAULT", ::runs_here);
}  // namespace itm::simd
