// Softmax over a part of a row of scores, and its gradient.

// Turns row[c] into the softmax of (row[c] - offset[c]) scale. Entries of -inf become 0. A row of
// only -inf, or with NaN or inf, becomes NaN.
template <typename T>
void softmax_row(T* row, const T* offset, int64_t columns, T scale) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  for (int64_t c = 0; c < columns; ++c) row[c] = (row[c] - offset[c]) * scale;
  T lane[kLanes];
  for (int64_t k = 0; k < kLanes; ++k) lane[k] = row[0];
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) lane[k] = row[c + k] > lane[k] ? row[c + k] : lane[k];
  T highest = lane[0];
  for (int64_t k = 0; k < kLanes; ++k) highest = lane[k] > highest ? lane[k] : highest;
  for (; c < columns; ++c) highest = row[c] > highest ? row[c] : highest;
  for (c = 0; c < columns; ++c) row[c] = exponential(row[c] - highest);
  const T sum = static_cast<T>(row_sum<T>(columns, Entry<T>{row}));
  for (c = 0; c < columns; ++c) row[c] /= sum;
}

template <typename T>
struct Product {
  const T *x, *y;
  template <typename V>
  V at(int64_t c) const {
    return load<V>(x + c) * load<V>(y + c);
  }
};

// Turns the gradient of a softmax p into that of its input: scale p (grad - sum of p grad).
template <typename T>
void softmax_gradient(T* grad, const T* p, int64_t columns, T scale) {
  const T sum = static_cast<T>(row_sum<T>(columns, Product<T>{p, grad}));
  for (int64_t c = 0; c < columns; ++c) grad[c] = scale * p[c] * (grad[c] - sum);
}
