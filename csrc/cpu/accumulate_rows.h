#pragma once
// Sums of rows whose number grows with the batch.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace itm::cpu {

// Adds `count` rows to out, [D]: add(begin, end, out) adds those of [begin, end). Blocks of 256 are
// summed separately and added up in fp64, so that the error does not grow with the batch.
template <typename T, typename Add>
void accumulate_rows(int64_t count, T* out, int64_t D, Add&& add) {
  constexpr int64_t kBlock = 256;
  if (count <= kBlock) return add(0, count, out);
  std::vector<double> total(out, out + D);
  std::vector<T> part(D);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    std::fill(part.begin(), part.end(), T(0));
    add(begin, std::min(begin + kBlock, count), part.data());
    for (int64_t d = 0; d < D; ++d) total[d] += part[d];
  }
  std::copy(total.begin(), total.end(), out);
}

}  // namespace itm::cpu
