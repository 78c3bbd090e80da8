// Sums of hinges over a tile of scores, and the weights of their gradients. The offset of an anchor
// is margin - s+; entries that are no negatives are -inf and fall out by themselves.

template <typename T>
T row_hinge_sum(const T* row, int64_t columns, T offset) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  T lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) {
      const T x = row[c + k] + offset;
      lane[k] += x <= 0 ? T(0) : x;
    }
  T sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  for (; c < columns; ++c) sum += row[c] + offset <= 0 ? T(0) : row[c] + offset;
  return sum;
}

template <typename T>
void column_hinge_sum(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                      const T* offset, T* sum) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = tile + r * columns;
    for (int64_t c = c0; c < c1; ++c) {
      const T x = row[c] + offset[c];
      sum[c] += x <= 0 ? T(0) : x;
    }
  }
}

template <typename T>
int64_t row_hinge_weights(const T* row, T* weights, int64_t columns, T offset, T share) {
  int64_t count = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const bool active = row[c] + offset > 0;
    weights[c] += active ? share : T(0);
    count += active;
  }
  return count;
}

template <typename T>
void column_hinge_weights(const T* row, T* weights, int64_t columns, const T* offset,
                          const T* share) {
  for (int64_t c = 0; c < columns; ++c) weights[c] = row[c] + offset[c] > 0 ? share[c] : T(0);
}

template <typename T>
void column_hinge_count(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                        const T* offset, T* count) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = tile + r * columns;
    for (int64_t c = c0; c < c1; ++c) count[c] += row[c] + offset[c] > 0 ? T(1) : T(0);
  }
}
