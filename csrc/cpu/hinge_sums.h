#pragma once
// Sums of hinges over tiles of scores, and their gradient. The offset of a pair is margin - s+, NaN
// for a text without exactly one image.

#include <algorithm>
#include <vector>

#include "cpu/groups.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {

// Returns 0 for every pair, or NaN where its positive score is not finite.
template <typename T>
std::vector<double> first_sums(const std::vector<T>& offset) {
  std::vector<double> sum(offset.size());
  std::transform(offset.begin(), offset.end(), sum.begin(), [](T x) { return 0 * x; });
  return sum;
}

// Adds the hinges of a tile, whose pairs that share an id are -inf, to the sums of its pairs. The
// pairs are grouped by image.
template <typename T>
void add_hinges(const Tile<T>& t, const Groups& pairs, const std::vector<T>& offset,
                std::vector<double>& sum) {
  const auto& loop = loops<T>();
  parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t i = t.first_row + r;
      for (int64_t k = pairs.start[i]; k < pairs.start[i + 1]; ++k) {
        const int64_t j = pairs.order[k];
        sum[j] += loop.row_hinge_sum(t.row(r), t.columns, offset[j]);
      }
    }
  });
  parallel_for(0, t.columns, grain(t.rows), [&](int64_t c0, int64_t c1) {
    loop.column_hinge_sum(t.data, t.rows, t.columns, c0, c1, &offset[t.first_column],
                          &sum[t.first_column]);
  });
}

// Turns a tile into the gradient of the sums, and counts the active hinges of every pair.
template <typename T>
void to_hinge_gradient(const Tile<T>& t, const Groups& pairs, const std::vector<T>& offset,
                       const T* of_loss, std::vector<double>& active) {
  const auto& loop = loops<T>();
  parallel_for(0, t.columns, grain(t.rows), [&](int64_t c0, int64_t c1) {
    loop.column_hinge_count(t.data, t.rows, t.columns, c0, c1, &offset[t.first_column],
                            &active[t.first_column]);
  });
  parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
    std::vector<T> weights(t.columns);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t i = t.first_row + r;
      loop.column_hinge_weights(t.row(r), weights.data(), t.columns, &offset[t.first_column],
                                of_loss + t.first_column);
      for (int64_t k = pairs.start[i]; k < pairs.start[i + 1]; ++k) {
        const int64_t j = pairs.order[k];
        active[j] += static_cast<double>(
            loop.row_hinge_weights(t.row(r), weights.data(), t.columns, offset[j], of_loss[j]));
      }
      std::copy(weights.begin(), weights.end(), t.row(r));
    }
  });
}

// Returns the gradient of every positive score from the number of active hinges of its pair.
template <typename T>
std::vector<T> positive_gradients(const std::vector<double>& active, const T* of_loss) {
  std::vector<T> of_positive(active.size());
  for (size_t j = 0; j < active.size(); ++j)
    of_positive[j] = static_cast<T>(-of_loss[j] * active[j]);
  return of_positive;
}

}  // namespace itm::cpu
