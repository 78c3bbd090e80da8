#pragma once
// How a fiber is left and entered, and what the address sanitizer is told of it.

#include <array>
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

constexpr size_t kStack = 64 << 10;

// Where a fiber goes on. ucontext alone, which begins it, asks the system at every change: half of
// the time of the tests.
using Jump = std::array<void*, 5>;

// The address sanitizer keeps books on stacks: it is told of every change from one to another.
struct Stack {
  const void* bottom = nullptr;
  size_t size = 0;
  void* saved = nullptr;
};

inline void leave(Stack& from, const Stack& to, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.saved, to.bottom, to.size);
#endif
}

inline void arrive(Stack& here, Stack* came_from) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(here.saved, &bottom, &size);
  if (came_from) came_from->bottom = bottom, came_from->size = size;
#endif
}

}  // namespace emulator
