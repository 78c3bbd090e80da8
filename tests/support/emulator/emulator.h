#pragma once
// Runs CUDA C++ on the host: every CUDA thread is a fiber. In random order, several blocks are
// alive at once and their steps are interleaved.
//
// The emulator varies or forbids whatever the hardware leaves undefined. Fibers run until they
// wait, in an order that the caller chooses, so code that depends on the order gives other results
// or fails. Shared memory is accessed through Shared<T> alone, which checks every access against
// the barriers in the program, rather than against the order that happened to run. A kernel that
// breaks a rule ends with a Failure that names the rule.

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// Those of the running fiber; the scheduler sets them.
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { kForward, kReverse, kRandom };

struct Settings {
  Order order = Order::kForward;
  uint64_t seed = 0;  // of kRandom
};
inline Settings settings;

constexpr int kWarp = 32, kLargestBlock = 1024;
constexpr size_t kLargestShared = 227 << 10, kWordBytes = 4, kLane = 16;

// The last accesses to one word of the current block's shared memory.
struct Word {
  static constexpr int kNobody = -1, kSeveral = -2;
  uint32_t written = 0, read = 0;  // the last times, counted in barriers passed, from 1 on
  int16_t writer = kNobody, reader = kNobody;  // the threads, at that time
  bool in_flight = false;                      // an asynchronous copy is not complete
};

struct Copy {
  size_t to;
  const void* from;
  size_t size, bytes;  // of the destination, and of the source; the rest is filled with 0
  int group;
};

using Place = std::source_location;

inline std::string name(const Place& at) {
  const std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Lane {
  State state;
  Place at;       // of the call that waits
  unsigned mask;  // of the lanes that take part
  int turn;       // the current one of two slots for exchanged values
  int value;      // contributed to a barrier
  int groups;     // of copies, closed so far
  std::vector<Copy> copies;
};

// The running block. Its scheduler and its fibers are in scheduler.cpp.
class Block {
 public:
  Block(dim3 threads, size_t shared_bytes);
  ~Block();
  void begin(dim3 index, const std::function<void()>& kernel);
  bool step(std::mt19937_64& random);  // runs every thread until it waits; false at the end

  static Block& current();
  int thread() const { return running_; }
  int barrier(int value, const Place& at);  // returns how many values were not 0
  void exchange(unsigned mask, const void* mine, size_t size, const Place& at);
  const void* left_by(int lane) const;  // the value of a lane of this warp in the last exchange

  void* access(size_t first, size_t bytes, size_t end, bool write);
  void copy(const Copy& copy, size_t end);
  void close_group();
  void wait_for_copies(int open_groups);
  size_t shared_bytes() const { return shared_bytes_; }
  [[noreturn]] void stop(const std::string& what);  // ends the kernel where it cannot throw

 private:
  struct Fibers;
  unsigned char* shared() const;
  void wait(State state, const Place& at);
  bool release_warps();
  void release_barrier();
  void mark(size_t first, size_t bytes, bool write);
  [[noreturn]] void fail(const std::string& what) const { throw Failure(what); }
  std::string who(int thread) const;

  std::vector<Lane> lanes_;
  size_t shared_bytes_;
  std::vector<Word> words_;
  std::vector<std::array<std::array<unsigned char, kLane>, 2>> slots_;
  std::unique_ptr<Fibers> fibers_;
  const std::function<void()>* kernel_ = nullptr;
  uint32_t time_ = 1;  // barriers passed, plus 1
  int running_ = -1, votes_ = 0;
  std::vector<int> order_;
  dim3 index_;
};

// Orders everything before an addition to an address before everything after the next addition to
// it.
unsigned atomic_add(unsigned* to, unsigned value);

// Runs a kernel over a grid, in the order of the settings.
void run_grid(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel);

// Records a launch instead of running it, if launches are being recorded; returns whether they are.
bool note(const void* kernel, dim3 blocks);

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
            Arguments&&... arguments) {
  if (note(reinterpret_cast<const void*>(kernel), blocks)) return;
  const std::tuple<Parameters...> all{static_cast<Parameters>(arguments)...};
  run_grid(blocks, threads, shared_bytes, [&] { std::apply(kernel, all); });
}

}  // namespace emulator

// -- functions that kernels may call --

inline void __syncthreads(emulator::Place at = emulator::Place::current()) {
  emulator::Block::current().barrier(0, at);
}

inline int __syncthreads_or(int value, emulator::Place at = emulator::Place::current()) {
  return emulator::Block::current().barrier(value, at) > 0;
}

inline unsigned atomicAdd(unsigned* to, unsigned value) {
#if defined(ITM_ADDRESSES)
  static_cast<void>(*static_cast<volatile unsigned*>(to));  // the emulator's access is unchecked
#endif
  return emulator::atomic_add(to, value);
}
inline void __threadfence() {}

inline unsigned __ballot_sync(unsigned mask, int value,
                              emulator::Place at = emulator::Place::current()) {
  auto& block = emulator::Block::current();
  block.exchange(mask, &value, sizeof(value), at);
  unsigned found = 0;
  for (int lane = 0; lane < emulator::kWarp; ++lane) {
    int theirs = 0;
    if (!(mask >> lane & 1)) continue;
    std::memcpy(&theirs, block.left_by(lane), sizeof(theirs));
    found |= theirs ? 1u << lane : 0u;
  }
  return found;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, emulator::Place at = emulator::Place::current()) {
  static_assert(sizeof(T) <= emulator::kLane);
  auto& block = emulator::Block::current();
  block.exchange(mask, &value, sizeof(T), at);
  if (!(mask >> from & 1))
    throw emulator::Failure("shuffle: reads a lane outside its mask at " + emulator::name(at));
  std::memcpy(&value, block.left_by(from), sizeof(T));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes,
                  emulator::Place at = emulator::Place::current()) {
  return __shfl_sync(mask, value, emulator::Block::current().thread() % emulator::kWarp ^ lanes,
                     at);
}

namespace itm::cuda {

// A checked window of the block's shared memory; compat.cuh defines the same class for the device.
template <typename T>
class Shared {
  static_assert(sizeof(T) % emulator::kWordBytes == 0);

 public:
  template <int kCount>
  static Shared all() {
    return Shared(0, kCount);
  }

  Shared(size_t first_byte, size_t count)
      : first_(first_byte), end_(first_byte + count * sizeof(T)) {
    if (end_ > emulator::Block::current().shared_bytes())
      throw emulator::Failure("shared memory: a window exceeds the launch's allocation");
  }

  template <typename Value = T>
  Value read(int i) const {
    Value value;
    std::memcpy(&value, at<Value>(i, false), sizeof(Value));
    return value;
  }

  template <typename Value>
  void write(int i, const Value& value) const {
    std::memcpy(at<Value>(i, true), &value, sizeof(Value));
  }

  // Copies Value from global memory asynchronously; writes 0 unless `there`.
  template <typename Value>
  void copy_async(int i, const void* from, bool there = true) const {
    static_assert(sizeof(Value) == 4 || sizeof(Value) == 8 || sizeof(Value) == 16);
    const size_t to = place<Value>(i);
    if (there && reinterpret_cast<uintptr_t>(from) % sizeof(Value))
      throw emulator::Failure("asynchronous copy: its source is not aligned");
    emulator::Block::current().copy({to, from, sizeof(Value), there ? sizeof(Value) : 0, 0}, end_);
  }

 private:
  template <typename Value>
  size_t place(int i) const {
    const size_t to = first_ + static_cast<int64_t>(i) * static_cast<int64_t>(sizeof(T));
    if (to % alignof(Value)) throw emulator::Failure("shared memory: an access is not aligned");
    if (i < 0) throw emulator::Failure("shared memory: an index is negative");
    return to;
  }
  template <typename Value>
  void* at(int i, bool write) const {
    return emulator::Block::current().access(place<Value>(i), sizeof(Value), end_, write);
  }

  size_t first_, end_;
};

inline void close_copies() { emulator::Block::current().close_group(); }

template <int kOpen>
void wait_for_copies() {
  emulator::Block::current().wait_for_copies(kOpen);
}

}  // namespace itm::cuda
