#include "cpu/instruction_set.h"

#include <ATen/Version.h>

#include <string>

namespace itm::cpu {

// ATen does not check ATEN_CPU_CAPABILITY. An instruction set that the CPU lacks would end the
// process, so the highest supported one below it is used instead.
const simd::LoopTable& loop_table() {
  static const simd::LoopTable& chosen = [&]() -> const simd::LoopTable& {
    const std::string requested = at::get_cpu_capability();
    bool allowed = false;
    for (const simd::LoopTable* table : simd::kLoopTables) {
      allowed = allowed || requested == table->instruction_set;
      if (allowed && table->runs_here()) return *table;
    }
    return simd::loops_default;
  }();
  return chosen;
}

}  // namespace itm::cpu
