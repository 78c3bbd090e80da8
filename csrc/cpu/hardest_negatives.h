#pragma once
// The hardest negative of every row and column, and the positive score of every column.

#include <optional>

#include "cpu/running_maximum.h"
#include "cpu/same_id.h"

namespace itm::cpu {

struct HardestNegatives {
  Tensor positive;
  RunningMaximum row, column;

  HardestNegatives(int64_t rows, int64_t columns, const at::TensorOptions& options)
      : positive(at::full({columns}, std::numeric_limits<double>::quiet_NaN(), options)),
        row(rows, options),
        column(columns, options) {}

  HardestNegatives(const Tensor& x, const Tensor& y)
      : HardestNegatives(x.size(0), y.size(0), x.options()) {}
};

// Returns whether bf16 products run in hardware and the library may use it.
bool screening_possible();

// Returns whether screening is possible and there are enough products for it to pay off.
bool screening_pays(const Tensor& x, const Tensor& y);

// Computes the same from bf16 products, whose rounding is bounded, and exact products of the few
// pairs that the bound cannot tell from the maximum. Returns nothing if there are too many of them,
// or if a row is not finite or so large that its products are not.
std::optional<HardestNegatives> screened_negatives(const Tensor& x, const Tensor& y,
                                                   const int64_t* positive_of, const SameId& same);

// Writes the tile's positive scores to `positive` and excludes its pairs that share an id.
template <typename T>
void extract_positives(const Tile<T>& tile, const SameId& same, const int64_t* positive_of,
                       T* positive) {
  for_each_same_id(tile, same, [&](int64_t r, int64_t c) {
    const int64_t i = tile.first_row + r, j = tile.first_column + c;
    if (!positive_of || positive_of[j] == i) positive[j] = tile.row(r)[c];
    tile.row(r)[c] = -std::numeric_limits<T>::infinity();
  });
}

// Gives anchors without a maximum the index of their first negative. Scores that overflow to -inf
// raise no maximum, and their pairs may still be negatives.
template <typename Same>
void default_to_first_negative(const RunningMaximum& anchors, int64_t others, Same&& same) {
  int64_t* index = anchors.indices();
  parallel_for(0, anchors.index.size(0), grain(others), [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a)
      for (int64_t other = 0; index[a] < 0 && other < others; ++other)
        if (!same(a, other)) index[a] = other;
  });
}

inline void default_to_first_negative(const RunningMaximum& rows, const RunningMaximum& columns,
                                      const SameId& same) {
  default_to_first_negative(rows, columns.index.size(0), same);
  default_to_first_negative(columns, rows.index.size(0),
                            [&](int64_t c, int64_t r) { return same(r, c); });
}

// Finds the hardest negatives in the tiles that for_each_tile(visit) visits, which visit
// overwrites.
template <typename T, typename ForEachTile>
void find_hardest(const HardestNegatives& found, const int64_t* positive_of, const SameId& same,
                  ForEachTile&& for_each_tile) {
  T* positive = found.positive.mutable_data_ptr<T>();
  for_each_tile([&](const Tile<T>& t) {
    extract_positives(t, same, positive_of, positive);
    update_rows(t, found.row);
    update_columns(t, found.column);
  });
  default_to_first_negative(found.row, found.column, same);
}

template <typename T>
HardestNegatives hardest_negatives(const Tensor& image, const Tensor& text,
                                   const int64_t* positive_of, const SameId& same) {
  if (screening_pays(image, text))
    if (const auto found = screened_negatives(image, text, positive_of, same)) return *found;
  HardestNegatives found(image, text);
  find_hardest<T>(found, positive_of, same,
                  [&](auto&& visit) { for_each_tile<T>(image, text, 1, visit); });
  return found;
}

}  // namespace itm::cpu
