// Kernels that follow CUDA's rules and kernels that break them; the emulator must tell them apart.

#include <map>

#include "cuda/compat.cuh"

using itm::cuda::close_copies;
using itm::cuda::Shared;
using itm::cuda::wait_for_copies;

namespace {

constexpr int kThreads = 64;

int me() { return static_cast<int>(threadIdx.x); }

// Reverses values through shared memory: every thread reads a value that another has written.
template <bool kBarrier>
void reverse(const int* from, int* to) {
  const Shared<int> values(0, kThreads);
  values.write(me(), from[me()]);
  if (kBarrier) __syncthreads();
  to[me()] = values.read(kThreads - 1 - me());
}

// Shifts values by one, in place: all reads must precede the writes.
template <bool kBarrier>
void shift(const int* from, int* to) {
  const Shared<int> values(0, kThreads);
  values.write(me(), from[me()]);
  __syncthreads();
  const int next = values.read((me() + 1) % kThreads);
  if (kBarrier) __syncthreads();
  values.write(me(), next);
  to[me()] = next;
}

void barrier_in_a_branch(const int*, int*) {
  if (me() < 32)
    __syncthreads();
  else
    __syncthreads();
}

void barrier_after_a_return(const int*, int*) {
  if (me() == 7) return;
  __syncthreads();
}

void out_of_bounds(const int* from, int*) {
  const Shared<int> values(0, kThreads);
  values.write(me() + 1, from[me()]);
}

void misaligned(const int* from, int*) {
  const Shared<int> values(0, kThreads);
  struct alignas(16) Four {
    int v[4];
  };
  if (me() == 0) values.write(1, Four{});
}

// Loads or stores two or four adjacent values of global memory, starting at the second.
template <int kCount, bool kStore>
void several(const int* from, int* to) {
  using Strided = itm::cuda::Several<int, kCount>;
  if (me() > 0) return;
  if (kStore)
    *reinterpret_cast<Strided*>(to + 1) = *reinterpret_cast<const Strided*>(from);
  else
    *reinterpret_cast<Strided*>(to) = *reinterpret_cast<const Strided*>(from + 1);
}

void larger_than_asked_for(const int*, int*) { const Shared<int> values(0, kThreads + 1); }

void never_written(const int*, int* to) {
  const Shared<int> values(0, kThreads);
  to[me()] = values.read(me());
}

template <bool kWait, bool kBarrier, bool kClose = true>
void copied(const int* from, int* to) {
  const Shared<int> values(0, kThreads);
  values.copy_async<int>(me(), from + me());
  if (kClose) close_copies();
  if (kWait) wait_for_copies<0>();
  if (kBarrier) __syncthreads();
  to[me()] = values.read(kBarrier ? kThreads - 1 - me() : me());
}

// The newest group may stay open; the older one is complete.
template <int kOpen>
void two_groups(const int* from, int* to) {
  const Shared<int> values(0, kThreads);
  values.copy_async<int>(me(), from + me());
  close_copies();
  __syncthreads();
  close_copies();
  wait_for_copies<kOpen>();
  to[me()] = values.read(me());
  wait_for_copies<0>();
}

void copies_left(const int* from, int*) {
  const Shared<int> values(0, kThreads);
  values.copy_async<int>(me(), from + me());
  close_copies();
}

void zero_filled(const int* from, int* to) {
  const Shared<int> values(0, kThreads);
  values.copy_async<int>(me(), from + me(), me() % 2 == 0);
  close_copies();
  wait_for_copies<0>();
  to[me()] = values.read(me());
}

void votes(const int* from, int* to) {
  const unsigned odd = __ballot_sync(~0u, from[me()] % 2);
  const int any = __syncthreads_or(me() == 40);
  const int none = __syncthreads_or(0);
  int sum = from[me()];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  to[me()] = me() % 2 ? static_cast<int>(odd) : sum + 1000 * any + 5000 * none;
}

void shuffle_without_a_lane(const int* from, int* to) {
  to[me()] = me() == 3 ? 0 : __shfl_xor_sync(~0u, from[me()], 1);
}

// Compares a product with the same product stored by another function: they differ if the compiler
// contracts products and sums.
[[gnu::noinline]] float stored(float x) { return x * x; }
void contracted(const int* from, int* to) {
  const float x = 1 + static_cast<float>(from[me()]) / 3;
  const float product = stored(x);
  to[me()] = x * x - product != 0;
}

// The last write wins, which is legal only if the order does not matter.
void last_of_all(const int*, int* to) { to[0] = me(); }

const std::map<std::string, void (*)(const int*, int*)> kernels = {
    {"reverse", reverse<true>},
    {"reverse without a barrier", reverse<false>},
    {"shift", shift<true>},
    {"shift without a barrier", shift<false>},
    {"barrier in a branch", barrier_in_a_branch},
    {"barrier after a return", barrier_after_a_return},
    {"out of bounds", out_of_bounds},
    {"misaligned", misaligned},
    {"two numbers loaded off their alignment", several<2, false>},
    {"four numbers loaded off their alignment", several<4, false>},
    {"two numbers stored off their alignment", several<2, true>},
    {"four numbers stored off their alignment", several<4, true>},
    {"larger than asked for", larger_than_asked_for},
    {"never written", never_written},
    {"copied", copied<true, true>},
    {"copied, own value", copied<true, false>},
    {"copied without a wait", copied<false, true>},
    {"copied, group left open", copied<true, true, false>},
    {"two groups", two_groups<1>},
    {"two groups, too many open", two_groups<2>},
    {"copies left", copies_left},
    {"zero filled", zero_filled},
    {"votes", votes},
    {"shuffle without a lane", shuffle_without_a_lane},
    {"contracted", contracted},
    {"last of all", last_of_all},
};

}  // namespace

// Writes the emulator's error message, or "".
extern "C" void run_kernel(const char* name, const int* from, int* to, char* said, int64_t size) {
  std::string message;
  try {
    emulator::launch(kernels.at(name), {2}, {kThreads}, kThreads * sizeof(int), from, to);
  } catch (const std::exception& error) {
    message = error.what();
  }
  std::strncpy(said, message.c_str(), size - 1);
}
