#pragma once
// The hardest negative of every row and column, and every column's positive score.

#include "binding/maxima.h"
#include "binding/pairs.h"

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
  return found;
}

}  // namespace itm
