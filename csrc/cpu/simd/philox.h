#pragma once
// Counter-based noise: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
// SC 2011) maps a counter and a key to four random words, the same on every device.
//
// The noise of a pair of rows depends only on the seed, the direction and the pair, not on tiles or
// threads. All backends use this layout:
//
//   key       low and high half of seed[0]
//   counter   column j / 2, row i, low and high half of seed[1]
//   word      2 * direction + j % 2; direction 0 samples a column for a row, 1 a row for a column
//   u         (word + 1/2) / 2^32, strictly between 0 and 1
//   noise     Gumbel, -log(-log(1 - u)), in fp32: from -3.2 to 22.9
//
// 1 - u instead of u: large noise then comes from small u, near which fp32 is densest.

#include <cstdint>

namespace itm::simd {

struct Seed {
  uint32_t key[2], stream[2];

  constexpr Seed(uint64_t first, uint64_t second)
      : key{static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32)},
        stream{static_cast<uint32_t>(second), static_cast<uint32_t>(second >> 32)} {}
};

struct Words {
  uint32_t a, b, c, d;
};

constexpr Words philox(Words counter, uint32_t first, uint32_t second) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t x = uint64_t{0xD2511F53} * counter.a, y = uint64_t{0xCD9E8D57} * counter.c;
    counter = {static_cast<uint32_t>(y >> 32) ^ counter.b ^ first, static_cast<uint32_t>(y),
               static_cast<uint32_t>(x >> 32) ^ counter.d ^ second, static_cast<uint32_t>(x)};
    first += 0x9E3779B9, second += 0xBB67AE85;
  }
  return counter;
}

}  // namespace itm::simd
