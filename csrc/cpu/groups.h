#pragma once
// Items grouped by an index: the texts of each image, the members of each cluster.

#include <cstdint>
#include <vector>

namespace itm::cpu {

// The items whose index is g, for g in [0, groups), are order[start[g] .. start[g + 1]), in
// increasing order. Items with a negative index belong to no group.
struct Groups {
  std::vector<int64_t> start, order;

  Groups(const int64_t* index, int64_t size, int64_t groups) : start(groups + 1, 0) {
    for (int64_t k = 0; k < size; ++k)
      if (index[k] >= 0) ++start[index[k] + 1];
    for (int64_t g = 0; g < groups; ++g) start[g + 1] += start[g];
    order.resize(start[groups]);
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t k = 0; k < size; ++k)
      if (index[k] >= 0) order[next[index[k]]++] = k;
  }
};

}  // namespace itm::cpu
