#pragma once
// Switches between fibers, and the notifications that the sanitizers need for them.

#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <deque>
#include <new>

#if defined(ITM_ADDRESSES)
#include <sanitizer/common_interface_defs.h>
#endif

// Marks functions that jump between stacks. Before every jump, gcc's address sanitizer would clear
// its marks of the whole stack, with two system calls: half of the time, and faults that it would
// no longer see. No frame is lost in a jump.
#define ITM_JUMPS [[gnu::no_sanitize_address]]

// The file that calls these is compiled without the thread sanitizer: calls would otherwise start
// on one fiber's shadow stack and end on another's.
#if defined(ITM_RACES)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emulator {

#if defined(ITM_RACES)
constexpr bool kRaces = true;
inline std::deque<void*> idle_fibers;
constexpr size_t kStack = 256 << 10;
#else
constexpr bool kRaces = false;
constexpr size_t kStack = 64 << 10;
#endif

// Blocks reuse the fibers of earlier blocks: to start a fiber takes two system calls and faults of
// new pages. The thread sanitizer needs new fibers and new memory.
constexpr bool kReused = !kRaces;

// The resume point of a fiber. ucontext starts a fiber; switching with it takes a system call,
// which was half of the time of the tests.
using Jump = std::array<void*, 5>;

// The sanitizers track stacks and are notified of every switch between them.
struct Stack {
  const void* bottom = nullptr;
  size_t size = 0;
  void* saved = nullptr;
  void* fiber = nullptr;  // the thread sanitizer's
};

inline void leave(Stack& from, const Stack& to, bool for_good) {
#if defined(ITM_ADDRESSES)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.saved, to.bottom, to.size);
#endif
#if defined(ITM_RACES)
  constexpr unsigned kNoOrder = 1;  // switching fibers orders nothing
  __tsan_switch_to_fiber(to.fiber, kNoOrder);
#endif
}

inline void arrive(Stack& here, Stack* came_from) {
#if defined(ITM_ADDRESSES)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(here.saved, &bottom, &size);
  if (came_from) came_from->bottom = bottom, came_from->size = size;
#endif
}

// Notifications for the thread sanitizer: synchronisation, and accesses that belong to the
// emulator.

// Creating a fiber takes the sanitizer longer than most kernels run. Fibers that have ended wait in
// a queue longer than the threads of a few blocks: the accesses of one fiber in two blocks of a
// launch would look like those of one thread, so the next block takes other fibers.
inline void take_fiber(Stack& stack) {
#if defined(ITM_RACES)
  constexpr int kLeast = 1021;
  static int made = 0;
  if (idle_fibers.empty() || made < kLeast) {
    ++made;
    stack.fiber = __tsan_create_fiber(0);
    return;
  }
  stack.fiber = idle_fibers.front();
  idle_fibers.pop_front();
#endif
}
inline void give_fiber(Stack& stack) {
#if defined(ITM_RACES)
  if (stack.fiber) idle_fibers.push_back(stack.fiber);
  stack.fiber = nullptr;
#endif
}
inline void* this_fiber() {
#if defined(ITM_RACES)
  return __tsan_get_current_fiber();
#else
  return nullptr;
#endif
}
// Orders everything before release(tag) before everything after an acquire(tag).
inline void acquire(void* tag) {
#if defined(ITM_RACES)
  __tsan_acquire(tag);
#endif
}
inline void release(void* tag) {
#if defined(ITM_RACES)
  __tsan_release(tag);
#endif
}

inline void look_away() {
#if defined(ITM_RACES)
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
}
inline void look_again() {
#if defined(ITM_RACES)
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
}
// Hides the accesses of functions that the sanitizer replaces, such as memcpy and operator new,
// during its lifetime. The sanitizer sees no other access of scheduler.cpp, and hiding takes time:
// it stores two stack traces.
struct Unseen {
  Unseen() { look_away(); }
  ~Unseen() { look_again(); }
  Unseen(const Unseen&) = delete;
};

// Memory of a block. The thread sanitizer remembers the accesses of blocks that have ended until
// the memory is unmapped.
class Pages {
 public:
  explicit Pages(size_t size) : size_(size ? size : 1) { map(); }
  ~Pages() { munmap(data_, size_); }
  Pages(const Pages&) = delete;

  void renew() {
    if (!kRaces) return;
    munmap(data_, size_);
    map();
  }
  char* data() const { return data_; }

 private:
  void map() {  // untouched pages take no memory
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* found = mmap(nullptr, size_, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<char*>(found);
  }
  size_t size_;
  char* data_ = nullptr;
};

}  // namespace emulator
