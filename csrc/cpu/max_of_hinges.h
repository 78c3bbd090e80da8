#pragma once
// The hinges of the hardest or semi-hard negatives of every pair.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/groups.h"
#include "cpu/hardest_negatives.h"

namespace itm::cpu {

// The value of both indices of a pair whose loss is NaN. The gradient of its two rows must be NaN
// too, although the rows at the hardest indices may be finite.
constexpr int64_t kNan = -2;

// Finds the hardest negatives with scores below the pair's own positive, in the tiles that
// for_each_tile(visit) visits, twice. Row maxima are then per pair: [M], not [N].
template <typename T, typename ForEachTile>
void find_semihard(HardestNegatives& found, const int64_t* positive_of, const SameId& same,
                   ForEachTile&& for_each_tile) {
  const int64_t N = found.row.index.size(0), M = found.column.index.size(0);
  found.row = RunningMaximum(M, found.positive.options());
  const auto& loop = loops<T>();
  T* positive = found.positive.mutable_data_ptr<T>();
  for_each_tile([&](const Tile<T>& t) { extract_positives(t, same, positive_of, positive); });
  std::vector<int64_t> diagonal;
  if (!positive_of) {
    diagonal.resize(M);
    std::iota(diagonal.begin(), diagonal.end(), 0);
    positive_of = diagonal.data();
  }
  const Groups pairs(positive_of, M, N);
  T *row = found.row.values<T>(), *column = found.column.values<T>();
  int64_t *row_index = found.row.indices(), *column_index = found.column.indices();
  for_each_tile([&](const Tile<T>& t) {
    exclude(t, same);
    parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) {
        const int64_t i = t.first_row + r;
        for (int64_t k = pairs.start[i]; k < pairs.start[i + 1]; ++k) {
          const int64_t j = pairs.order[k];
          loop.row_max_below(t.row(r), t.columns, t.first_column, positive[j], row + j,
                             row_index + j);
        }
      }
    });
    parallel_for(0, t.columns, grain(t.rows), [&](int64_t c0, int64_t c1) {
      loop.column_max_below(t.data, t.rows, t.columns, c0, c1, t.first_row,
                            positive + t.first_column, column + t.first_column,
                            column_index + t.first_column);
    });
  });
}

// [x]+, NaN for NaN.
template <typename T>
T hinge(T x) {
  return x <= 0 ? T(0) : x;
}

// Returns the loss of every pair, and the indices of its negatives with a positive hinge, else -1.
// Without positive_of, row maxima are per pair.
template <typename T>
std::tuple<Tensor, Tensor, Tensor> hinges_of(const HardestNegatives& found,
                                             const int64_t* positive_of, double margin) {
  const int64_t M = found.positive.size(0);
  Tensor loss = at::empty_like(found.positive), text_index = at::empty_like(found.column.index);
  Tensor image_index = at::empty_like(text_index);
  const T* s = found.positive.const_data_ptr<T>();
  const T *row = found.row.values<T>(), *column = found.column.values<T>();
  const int64_t *row_index = found.row.indices(), *column_index = found.column.indices();
  T* out = loss.mutable_data_ptr<T>();
  int64_t* hardest_text = text_index.mutable_data_ptr<int64_t>();
  int64_t* hardest_image = image_index.mutable_data_ptr<int64_t>();
  const auto alpha = static_cast<T>(margin);
  for (int64_t j = 0; j < M; ++j) {
    const int64_t i = positive_of ? std::max<int64_t>(positive_of[j], 0) : j;
    const T a = hinge(alpha + row[i] - s[j]), b = hinge(alpha + column[j] - s[j]);
    out[j] = a + b + 0 * s[j];
    const bool nan = out[j] != out[j];
    hardest_text[j] = nan ? kNan : a != 0 ? row_index[i] : -1;
    hardest_image[j] = nan ? kNan : b != 0 ? column_index[j] : -1;
  }
  return {loss, text_index, image_index};
}

}  // namespace itm::cpu
