// Barriers and warp exchanges of a block, for scheduler.cpp.

int Block::barrier(int value, const Place& at) {
  char* tag = &fibers_->passed[time_ % 2];
  release(tag);
  lanes_[running_].value = value;
  wait(State::kAtBarrier, at);
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
  Lane& lane = lanes_[running_];
  if (!(mask >> running_ % kWarp & 1)) fail("warp: the calling lane is not in its mask");
  lane.mask = mask;
  lane.turn ^= 1;
  // memcpy would be a call that the thread sanitizer records.
  const auto* from = static_cast<const volatile unsigned char*>(mine);
  std::copy_n(from, size, slots_[running_][lane.turn].data());
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
