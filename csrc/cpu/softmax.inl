// Softmax over one row's part of a tile of scores, and its gradient.

// Turns row[c] into the softmax of (row[c] - offset[c]) scale. Entries of -inf become 0; a row of
// nothing else, or with NaN or inf in it, is NaN.
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
  for (int64_t k = 0; k < kLanes; ++k) lane[k] = 0;
  for (c = 0; c + kLanes <= columns; c += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) lane[k] += row[c + k];
  T sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  for (; c < columns; ++c) sum += row[c];
  for (c = 0; c < columns; ++c) row[c] /= sum;
}

// Turns the gradient of a softmax p into that of the row before: scale p (grad - sum of p grad).
template <typename T>
void softmax_gradient(T* grad, const T* p, int64_t columns, T scale) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  T lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) lane[k] += p[c + k] * grad[c + k];
  T sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  for (; c < columns; ++c) sum += p[c] * grad[c];
  for (c = 0; c < columns; ++c) grad[c] = scale * p[c] * (grad[c] - sum);
}
