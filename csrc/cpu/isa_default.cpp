// The loops for any processor of the architecture that the compiler was asked for.
#include "cpu/kernels.h"

namespace itm::cpu {
namespace isa_default {
#include "cpu/table.inl"
}
const Kernels kernels_default = isa_default::table();
}  // namespace itm::cpu
