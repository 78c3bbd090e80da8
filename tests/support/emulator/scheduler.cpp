// The emulator's fibers, barriers and checks of shared memory.

#include <dlfcn.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "alignment.h"
#include "emulator.h"
#include "fibers.h"

namespace emulator {
namespace {

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() &&
         (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
}

thread_local Block* running = nullptr;

// Tags of the thread sanitizer's order.
char launched, ended;

}  // namespace

struct Block::Fibers {
  std::vector<ucontext_t> contexts;  // where fibers start
  std::vector<Jump> jumps;           // where they resume
  std::vector<char> begun;
  std::vector<Stack> stacks;
  Pages memory, shared;
  bool all_ended = true;
  Jump scheduler;
  char passed[2];  // by barriers, in turn: tags for the thread sanitizer
  Stack own;
  std::exception_ptr failure;

  explicit Fibers(size_t count)
      : contexts(count),
        jumps(count),
        begun(count),
        stacks(count),
        memory(count * kStack),
        shared(kLargestShared) {
    own.fiber = this_fiber();
  }
  ~Fibers() { end(); }
  void end() { std::for_each(stacks.begin(), stacks.end(), give_fiber); }

  // Returns fibers of an earlier block of as many threads, or new ones.
  static std::unique_ptr<Fibers> take(size_t count) {
    const auto fits = [&](const auto& fibers) { return fibers->stacks.size() == count; };
    const auto found = std::find_if(idle.begin(), idle.end(), fits);
    if (found == idle.end()) return std::make_unique<Fibers>(count);
    auto fibers = std::move(*found);
    idle.erase(found);
    return fibers;
  }
  static void give(std::unique_ptr<Fibers> fibers) {
    if (kReused && fibers && fibers->all_ended) idle.push_back(std::move(fibers));
  }

  // Runs a kernel, and those of later blocks.
  ITM_JUMPS static void enter() {
    for (;;) {
      Fibers& all = *running->fibers_;
      arrive(all.stacks[running->running_], &all.own);
      acquire(&launched);
      all.run(*running);
      release(&ended);
      all.leave_kernel(running->running_);
    }
  }
  void run(Block& block) {
    try {
      (*block.kernel_)();
    } catch (...) {
      failure = std::current_exception();
    }
    block.lanes_[block.running_].state = State::kDone;
  }
  ITM_JUMPS void leave_kernel(int thread) {
    leave(stacks[thread], own, !kReused);
    if (!__builtin_setjmp(jumps[thread].data())) back();
  }

  void start(int thread) {
    if (kReused && begun[thread]) return;
    ucontext_t& context = contexts[thread];
    stacks[thread] = {memory.data() + thread * kStack, kStack, nullptr, nullptr};
    take_fiber(stacks[thread]);
    getcontext(&context);
    context.uc_stack.ss_sp = memory.data() + thread * kStack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
    begun[thread] = false;
  }

  ITM_JUMPS void resume(int thread) {
    leave(own, stacks[thread], false);
    if (!__builtin_setjmp(scheduler.data())) go_on(thread);
    arrive(own, nullptr);
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  }
  ITM_JUMPS [[gnu::noinline]] void go_on(int thread) {
    if (begun[thread]) __builtin_longjmp(jumps[thread].data(), 1);
    begun[thread] = true;
    setcontext(&contexts[thread]);
  }

  // Returns control to the scheduler until it resumes this fiber.
  ITM_JUMPS void pause(int thread) {
    leave(stacks[thread], own, false);
    if (!__builtin_setjmp(jumps[thread].data())) back();
    arrive(stacks[thread], &own);
  }
  ITM_JUMPS [[gnu::noinline, noreturn]] void back() { __builtin_longjmp(scheduler.data(), 1); }

  static std::vector<std::unique_ptr<Fibers>> idle;
};

// Not inline: a process that loads two emulators would have one list for both.
std::vector<std::unique_ptr<Block::Fibers>> Block::Fibers::idle;

Block::Block(dim3 threads, size_t shared_bytes)
    : lanes_(static_cast<size_t>(threads.x) * threads.y * threads.z),
      shared_bytes_((shared_bytes + kWordBytes - 1) / kWordBytes * kWordBytes),
      words_(shared_bytes_ / kWordBytes),
      slots_(lanes_.size()),
      order_(lanes_.size()) {
  if (lanes_.empty() || lanes_.size() > kLargestBlock) fail("launch: an invalid number of threads");
  if (shared_bytes > kLargestShared) fail("launch: more shared memory than a block can have");
  fibers_ = Fibers::take(lanes_.size());
}

Block::~Block() { Fibers::give(std::move(fibers_)); }

Block& Block::current() { return *running; }

std::string Block::who(int thread) const { return "thread " + std::to_string(thread); }

unsigned char* Block::shared() const {
  return reinterpret_cast<unsigned char*>(fibers_->shared.data());
}

void Block::begin(dim3 index, const std::function<void()>& kernel) {
  index_ = index;
  kernel_ = &kernel;
  time_ = 1;
  std::fill(words_.begin(), words_.end(), Word{});
  fibers_->all_ended = false;
  fibers_->memory.renew();
  fibers_->shared.renew();
  std::memset(shared(), 0xff, shared_bytes_);  // NaN, for unwritten values
  std::iota(order_.begin(), order_.end(), 0);
  if (settings.order == Order::kReverse) std::reverse(order_.begin(), order_.end());
  for (int thread : order_) {
    lanes_[thread] = {};
    fibers_->start(thread);
  }
}

bool Block::step(std::mt19937_64& random) {
  running = this;
  blockIdx = index_;
  if (settings.order == Order::kRandom) std::shuffle(order_.begin(), order_.end(), random);
  bool ran = false;
  for (int thread : order_) {
    if (lanes_[thread].state != State::kReady) continue;
    running_ = thread;
    const unsigned x = blockDim.x, y = blockDim.y;
    threadIdx = {thread % x, thread / x % y, thread / (x * y)};
    fibers_->resume(thread);
    ran = true;
  }
  if (release_warps() || ran) return true;
  const auto done = [](const Lane& lane) { return lane.state == State::kDone; };
  if (!std::all_of(lanes_.begin(), lanes_.end(), done)) {
    release_barrier();
    return true;
  }
  for (size_t thread = 0; thread < lanes_.size(); ++thread)
    if (!lanes_[thread].copies.empty())
      fail("asynchronous copy: " + who(thread) + " ends without waiting for its copies");
  fibers_->end();
  fibers_->all_ended = true;
  running = nullptr;
  return false;
}

void Block::wait(State state, const Place& at) {
  Fibers& all = *fibers_;
  const int thread = running_;
  lanes_[thread].state = state;
  lanes_[thread].at = at;
  all.pause(thread);
}

void Block::stop(const std::string& what) {
  fibers_->failure = std::make_exception_ptr(Failure(what));
  leave(fibers_->stacks[running_], fibers_->own, true);
  fibers_->back();
}

#include "shared_memory.inl"
#include "synchronization.inl"

static int64_t launches = 0;

unsigned atomic_add(unsigned* to, unsigned value) {
  acquire(to);
  const unsigned before = *to;
  *to = before + value;
  release(to);
  return before;
}

void run_grid(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel) {
  ++launches;
  release(&launched);
  {
    const Unseen own;
    std::mt19937_64 random(settings.seed);
    gridDim = blocks;
    blockDim = threads;
    const int64_t count = static_cast<int64_t>(blocks.x) * blocks.y * blocks.z;
    const size_t most = settings.order == Order::kRandom ? 2 + random() % 3 : 1;
    std::vector<std::unique_ptr<Block>> alive, idle;
    for (int64_t next = 0; next < count || !alive.empty();) {
      while (alive.size() < most && next < count) {
        if (idle.empty()) idle.push_back(std::make_unique<Block>(threads, shared_bytes));
        const unsigned x = next % blocks.x, y = next / blocks.x % blocks.y;
        idle.back()->begin({x, y, static_cast<unsigned>(next / blocks.x / blocks.y)}, kernel);
        alive.push_back(std::move(idle.back()));
        idle.pop_back();
        ++next;
      }
      auto& block = alive[alive.size() > 1 ? random() % alive.size() : 0];
      if (block->step(random)) continue;
      idle.push_back(std::move(block));
      std::swap(block, alive.back());
      alive.pop_back();
    }
  }
  acquire(&ended);
}

static bool noting = false;
static std::string noted;

bool note(const void* kernel, dim3 blocks) {
  if (!noting) return false;
  Dl_info found{};
  dladdr(kernel, &found);
  noted += found.dli_sname ? found.dli_sname : "?";
  noted += " " + std::to_string(blocks.x) + "\n";
  return true;
}

}  // namespace emulator

// Records launches instead of running them, or runs them again.
extern "C" void emulator_note(bool on) {
  emulator::noting = on;
  if (on) emulator::noted.clear();
}
// Returns the symbols and block counts of the recorded launches, one per line.
extern "C" const char* emulator_noted() { return emulator::noted.c_str(); }

// Returns how many grids have run.
extern "C" int64_t emulator_launches() { return emulator::launches; }

// Sets the order of all later launches.
extern "C" void emulator_schedule(int order, uint64_t seed) {
  emulator::settings = {static_cast<emulator::Order>(order), seed};
}
