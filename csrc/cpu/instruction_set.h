#pragma once
// The vector loops for the instruction set of this CPU.

#include "cpu/simd/loop_table.h"

namespace itm::cpu {

// Returns the loops for the instruction set that ATen uses, or for the next lower one that the CPU
// supports. ATEN_CPU_CAPABILITY selects both.
const simd::LoopTable& loop_table();

template <typename T>
const simd::Loops<T>& loops() {
  return simd::loops<T>(loop_table());
}

}  // namespace itm::cpu
