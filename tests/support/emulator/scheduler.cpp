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
  return a.line() == b.line() && !std::strcmp(a.file_name(), b.file_name());
}

thread_local Block* running = nullptr;

// Tags of the thread sanitizer's order.
char launched, ended;

}  // namespace

struct Block::Fibers {
  std::vector<ucontext_t> contexts;  // where fibers start
  std::vector<Jump> jumps;           // where they resume
  std::vector<bool> begun;
  std::vector<Stack> stacks;
  Pages memory, shared;
  Jump scheduler;
  char passed[2];  // by barriers, in turn: tags for the thread sanitizer
  Stack own;
  std::exception_ptr failure;

  Fibers(size_t count, size_t shared_bytes)
      : contexts(count),
        jumps(count),
        begun(count),
        stacks(count),
        memory(count * kStack),
        shared(shared_bytes) {
    own.fiber = this_fiber();
  }
  ~Fibers() { end(); }
  void end() { std::for_each(stacks.begin(), stacks.end(), give_fiber); }

  static void enter() {
    Block& block = *running;
    Fibers& all = *block.fibers_;
    arrive(all.stacks[block.running_], &all.own);
    acquire(&launched);
    try {
      (*block.kernel_)();
    } catch (...) {
      all.failure = std::current_exception();
    }
    block.lanes_[block.running_].state = State::kDone;
    release(&ended);
    leave(all.stacks[block.running_], all.own, true);
    all.back();
  }

  void start(int thread) {
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

  void resume(int thread) {
    leave(own, stacks[thread], false);
    if (!__builtin_setjmp(scheduler.data())) go_on(thread);
    arrive(own, nullptr);
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  }
  [[gnu::noinline]] void go_on(int thread) {
    if (begun[thread]) __builtin_longjmp(jumps[thread].data(), 1);
    begun[thread] = true;
    setcontext(&contexts[thread]);
  }

  // Returns control to the scheduler until it resumes this fiber.
  void pause(int thread) {
    leave(stacks[thread], own, false);
    if (!__builtin_setjmp(jumps[thread].data())) back();
    arrive(stacks[thread], &own);
  }
  [[gnu::noinline, noreturn]] void back() { __builtin_longjmp(scheduler.data(), 1); }
};

Block::Block(dim3 threads, size_t shared_bytes)
    : lanes_(static_cast<size_t>(threads.x) * threads.y * threads.z),
      shared_bytes_((shared_bytes + kWordBytes - 1) / kWordBytes * kWordBytes),
      words_(shared_bytes_ / kWordBytes),
      slots_(lanes_.size()),
      order_(lanes_.size()) {
  if (lanes_.empty() || lanes_.size() > kLargestBlock) fail("launch: an invalid number of threads");
  if (shared_bytes > kLargestShared) fail("launch: more shared memory than a block can have");
  fibers_ = std::make_unique<Fibers>(lanes_.size(), shared_bytes_);
}

Block::~Block() = default;

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

int Block::barrier(int value, const Place& at) {
  char* tag = &fibers_->passed[time_ % 2];
  release(tag);
  {
    const Unseen own;
    lanes_[running_].value = value;
    wait(State::kAtBarrier, at);
  }
  acquire(tag);
  return votes_;
}

void Block::release_barrier() {
  const Lane* first = nullptr;
  for (size_t thread = 0; thread < lanes_.size(); ++thread) {
    const Lane& lane = lanes_[thread];
    if (lane.state != State::kAtBarrier) continue;
    if (!first) first = &lane;
    if (!same(lane.at, first->at))
      fail("barrier: threads wait at " + name(first->at) + " and at " + name(lane.at));
  }
  votes_ = 0;
  for (size_t thread = 0; thread < lanes_.size(); ++thread) {
    Lane& lane = lanes_[thread];
    if (lane.state == State::kDone)
      fail("barrier: " + who(thread) + " has ended while others wait at " + name(first->at));
    if (lane.state == State::kAtWarp)
      fail("warp: " + who(thread) + " waits at " + name(lane.at) + " for lanes that never arrive");
    votes_ += lane.value != 0;
    lane.state = State::kReady;
  }
  ++time_;
}

void Block::exchange(unsigned mask, const void* mine, size_t size, const Place& at) {
  const Unseen own;  // an exchange orders no memory accesses
  Lane& lane = lanes_[running_];
  if (!(mask >> running_ % kWarp & 1)) fail("warp: the calling lane is not in its mask");
  lane.mask = mask;
  lane.turn ^= 1;
  std::memcpy(slots_[running_][lane.turn].data(), mine, size);
  wait(State::kAtWarp, at);
}

const void* Block::left_by(int lane) const {
  return slots_[running_ / kWarp * kWarp + lane][lanes_[running_].turn].data();
}

// Releases lanes once all lanes of their common mask have arrived at the same call.
bool Block::release_warps() {
  bool released = false;
  for (size_t thread = 0; thread < lanes_.size(); ++thread) {
    if (lanes_[thread].state != State::kAtWarp) continue;
    const size_t warp = thread / kWarp * kWarp;
    const Place at = lanes_[thread].at;
    const unsigned mask = lanes_[thread].mask;
    bool complete = true;
    for (size_t lane = 0; lane < kWarp && complete; ++lane) {
      if (!(mask >> lane & 1)) continue;
      if (warp + lane >= lanes_.size()) fail("warp: a mask names a lane that does not exist");
      const Lane& other = lanes_[warp + lane];
      if (other.state == State::kDone)
        fail("warp: a mask names " + who(warp + lane) + ", which has ended, at " + name(at));
      complete = other.state == State::kAtWarp && other.mask == mask && same(other.at, at);
    }
    for (size_t lane = 0; lane < kWarp && complete; ++lane)
      if (mask >> lane & 1) lanes_[warp + lane].state = State::kReady;
    released |= complete;
  }
  return released;
}

void* Block::access(size_t first, size_t bytes, size_t end, bool write) {
  if (first + bytes > end) fail("shared memory: " + who(running_) + " is out of bounds");
  const Unseen own;
  mark(first, bytes, write);
  return shared() + first;
}

void Block::mark(size_t first, size_t bytes, bool write) {
  const int me = running_;
  for (size_t w = first / kWordBytes; w < (first + bytes) / kWordBytes; ++w) {
    Word& word = words_[w];
    if (word.in_flight) fail("shared memory: " + who(me) + " does not wait for a copy");
    if (word.written == time_ && word.writer != me)
      fail("shared memory: no barrier between a write of " + who(word.writer) + " and " + who(me));
    if (write) {
      if (word.read == time_ && word.reader != me)
        fail("shared memory: no barrier between a read and a write of " + who(me));
      word.written = time_;
      word.writer = static_cast<int16_t>(me);
      continue;
    }
    if (word.written == 0) fail("shared memory: " + who(me) + " reads an unwritten value");
    if (word.read != time_) word.reader = static_cast<int16_t>(me);
    if (word.reader != me) word.reader = Word::kSeveral;
    word.read = time_;
  }
}

void Block::copy(const Copy& copy, size_t end) {
  const Unseen own;
  // The destination may not be read until the copy is complete; its old value is lost at once.
  std::memset(access(copy.to, copy.size, end, true), 0xff, copy.size);
  for (size_t w = copy.to / kWordBytes; w < (copy.to + copy.size) / kWordBytes; ++w)
    words_[w].in_flight = true;
  Lane& lane = lanes_[running_];
  lane.copies.push_back(copy);
  lane.copies.back().group = lane.groups;
}

void Block::close_group() { ++lanes_[running_].groups; }

void Block::wait_for_copies(int open_groups) {
  const Unseen own;
  Lane& lane = lanes_[running_];
  const int closed = lane.groups - open_groups;
  for (const Copy& copy : lane.copies) {
    if (copy.group >= closed) continue;
    for (size_t w = copy.to / kWordBytes; w < (copy.to + copy.size) / kWordBytes; ++w)
      words_[w].in_flight = false;
    std::array<unsigned char, kLane> value{};
    look_again();  // shows the kernel's read of global memory
    std::memcpy(value.data(), copy.from, copy.bytes);
    look_away();
    std::memcpy(access(copy.to, copy.size, shared_bytes_, true), value.data(), copy.size);
  }
  std::erase_if(lane.copies, [&](const Copy& copy) { return copy.group < closed; });
}

static int64_t launches = 0;

unsigned atomic_add(unsigned* to, unsigned value) {
  const Unseen own;
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
