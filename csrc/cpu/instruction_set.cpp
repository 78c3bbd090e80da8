#include <ATen/Version.h>

#include "cpu/score_tiles.h"

namespace itm {

// ATen takes ATEN_CPU_CAPABILITY at its word. A set that the CPU lacks would end the process, so
// the highest of those below is taken instead.
const cpu::Kernels& kernels() {
  static const cpu::Kernels& chosen = [&]() -> const cpu::Kernels& {
    const std::string asked = at::get_cpu_capability();
    bool allowed = false;
    for (const cpu::Kernels* table : cpu::kTables) {
      allowed = allowed || asked == table->instruction_set;
      if (allowed && table->runs_here()) return *table;
    }
    return cpu::kernels_default;
  }();
  return chosen;
}

}  // namespace itm
