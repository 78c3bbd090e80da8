// Sums of hinges over a tile of scores, and the weights of their gradients. The offset of an anchor
// is margin - s+. Entries that are no negatives are -inf, whose hinge is 0.

// The hinge of a number or a vector, NaN for NaN.
template <typename V>
inline V hinge(V x) {
  return x <= 0 ? V{} : x;
}

template <typename T>
struct RowHinge {
  const T* row;
  T offset;
  template <typename V>
  V at(int64_t c) const {
    return hinge(load<V>(row + c) + offset);
  }
};

template <typename T>
double row_hinge_sum(const T* row, int64_t columns, T offset) {
  return row_sum<T>(columns, RowHinge<T>{row, offset});
}

template <typename T>
struct ColumnHinge {
  const T* offset;
  T operator()(T score, int64_t c) const { return hinge(score + offset[c]); }
};

template <typename T>
void column_hinge_sum(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                      const T* offset, double* sum) {
  column_sum(tile, rows, columns, c0, c1, ColumnHinge<T>{offset}, sum);
}

template <typename T>
int64_t row_hinge_weights(const T* row, T* weights, int64_t columns, T offset, T weight) {
  int64_t count = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const bool active = row[c] + offset > 0;
    weights[c] += active ? weight : T(0);
    count += active;
  }
  return count;
}

template <typename T>
void column_hinge_weights(const T* row, T* weights, int64_t columns, const T* offset,
                          const T* weight) {
  for (int64_t c = 0; c < columns; ++c) weights[c] = row[c] + offset[c] > 0 ? weight[c] : T(0);
}

template <typename T>
struct ColumnActive {
  const T* offset;
  T operator()(T score, int64_t c) const { return score + offset[c] > 0 ? T(1) : T(0); }
};

template <typename T>
void column_hinge_count(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                        const T* offset, double* count) {
  column_sum(tile, rows, columns, c0, c1, ColumnActive<T>{offset}, count);
}
