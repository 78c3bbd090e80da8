// Shared memory of a block and copies into it, with the checks of all accesses, for scheduler.cpp.

void* Block::access(size_t first, size_t bytes, size_t end, bool write) {
  if (first + bytes > end) fail("shared memory: " + who(running_) + " is out of bounds");
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
