#pragma once
// Sums of log(1 + e^logit) over the columns of tiles, and their gradient.

#include <ATen/ops/from_blob.h>

#include <limits>
#include <vector>

#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {

// Adds the bias to a tile of scores. Logits of positives change sign, so that their loss is the
// same log(1 + e^logit) as that of negatives. Other pairs that share an id get the logit -inf,
// whose loss is 0.
template <typename T>
void to_logits(const Tile<T>& t, T bias, const SameId& same, const int64_t* positive_of) {
  parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
    for (T* s = t.row(r0); s < t.row(r1); ++s) *s += bias;
  });
  for_each_same_id(t, same, [&](int64_t r, int64_t c) {
    T& s = t.row(r)[c];
    const bool positive = !positive_of || positive_of[t.first_column + c] == t.first_row + r;
    // + 0 s turns an infinite positive score into NaN.
    s = positive ? -s + 0 * s : -std::numeric_limits<T>::infinity();
  });
}

// Adds a tile of logits to the sums of its columns.
template <typename T>
void add_softplus(const Tile<T>& t, std::vector<double>& sum) {
  parallel_for(0, t.columns, grain(8 * t.rows), [&](int64_t c0, int64_t c1) {
    loops<T>().column_softplus_sum(t.data, t.rows, t.columns, c0, c1, &sum[t.first_column]);
  });
}

// Writes the sums. A text without exactly one image has no positive, and its loss is NaN.
template <typename T>
void store_sums(const std::vector<double>& sum, const int64_t* positive_of, T* out) {
  const auto M = static_cast<int64_t>(sum.size());
  std::copy(sum.begin(), sum.end(), out);
  for (int64_t j = 0; positive_of && j < M; ++j)
    if (positive_of[j] < 0) out[j] = std::numeric_limits<T>::quiet_NaN();
}

// Turns a tile of logits into the gradient of the scaled scores; returns its sum, the gradient of
// the bias.
template <typename T>
double to_sigmoid_gradient(const Tile<T>& t, const SameId& same, const T* of_loss) {
  parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
    loops<T>().sigmoid_weights(t.data, t.columns, r0, r1, of_loss + t.first_column);
  });
  for_each_same_id(t, same, [&](int64_t r, int64_t c) { t.row(r)[c] = -t.row(r)[c]; });
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  const Tensor all = at::from_blob(t.data, {t.rows * t.columns}, dtype);
  return all.sum(at::kDouble).template item<double>();
}

}  // namespace itm::cpu
