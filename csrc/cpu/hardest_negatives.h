#pragma once
// The hardest negative of every row and column, and every column's positive score.

#include "cpu/running_maximum.h"
#include "cpu/same_id.h"

namespace itm {

struct Hardest {
  Tensor positive;
  Maxima row, column;

  Hardest(const Tensor& x, const Tensor& y)
      : positive(at::full({y.size(0)}, std::numeric_limits<double>::quiet_NaN(), x.options())),
        row(x.size(0), x.options()),
        column(y.size(0), x.options()) {}
};

// True where bf16 products run in hardware and the library may use it.
bool screening_possible();

// True where screening pays: it is possible, and there are enough products.
bool screening_pays(const Tensor& x, const Tensor& y);

// The same from products in bf16, whose rounding is bounded, and exact products of the few pairs
// that the bound cannot tell from the maximum. Nothing where those are not few, or where a row is
// not finite or so large that its products are not.
std::optional<Hardest> screened(const Tensor& x, const Tensor& y, const int64_t* positive_of,
                                const SameId& same);

// Notes the tile's positives and takes its same-id pairs out of the running.
template <typename T>
void mask(const Tile<T>& tile, const SameId& same, const int64_t* positive_of, T* positive) {
  for_each_same_id(tile, same, [&](int64_t r, int64_t c) {
    const int64_t i = tile.first_row + r, j = tile.first_column + c;
    if (!positive_of || positive_of[j] == i) positive[j] = tile.row(r)[c];
    tile.row(r)[c] = -std::numeric_limits<T>::infinity();
  });
}

// Gives anchors that saw nothing their first negative. A score of -inf, which overflow makes,
// raises no maximum, and its pair may be a negative all the same.
template <typename Same>
void take_first(const Maxima& anchors, int64_t others, Same&& same) {
  int64_t* index = anchors.indices();
  parallel_for(0, anchors.index.size(0), grain(others), [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a)
      for (int64_t other = 0; index[a] < 0 && other < others; ++other)
        if (!same(a, other)) index[a] = other;
  });
}

inline void take_first(const Maxima& rows, const Maxima& columns, const SameId& same) {
  take_first(rows, columns.index.size(0), same);
  take_first(columns, rows.index.size(0), [&](int64_t c, int64_t r) { return same(r, c); });
}

template <typename T>
Hardest hardest(const Tensor& image, const Tensor& text, const int64_t* positive_of,
                const SameId& same) {
  if (screening_pays(image, text))
    if (const auto found = screened(image, text, positive_of, same)) return *found;
  Hardest found(image, text);
  T* positive = found.positive.mutable_data_ptr<T>();
  for_each_tile<T>(image, text, 1, [&](const Tile<T>& t) {
    mask(t, same, positive_of, positive);
    raise_rows(t, found.row);
    raise_columns(t, found.column);
  });
  take_first(found.row, found.column, same);
  return found;
}

}  // namespace itm
