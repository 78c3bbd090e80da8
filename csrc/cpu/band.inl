// Bounded sums over rows of similarities or distances. "Inside" is "not outside", so that a NaN is
// inside and shows; pairs that take no part are -inf.

template <typename T>
inline bool inside(T key, T low, T high) {
  return !(key <= low) && !(key >= high);
}

// Sum of keys inside (low, high).
template <typename T>
T band_sum(const T* row, int64_t columns, T low, T high) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  T lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    for (int64_t k = 0; k < kLanes; ++k)
      lane[k] += inside(row[c + k], low, high) ? row[c + k] : T(0);
  T sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  for (; c < columns; ++c) sum += inside(row[c], low, high) ? row[c] : T(0);
  return sum;
}

// Sum of [high - key]+ where key > low.
template <typename T>
T repel_sum(const T* row, int64_t columns, T low, T high) {
  T sum = 0;
  for (int64_t c = 0; c < columns; ++c) sum += inside(row[c], low, high) ? high - row[c] : T(0);
  return sum;
}

// The gradient of one pair in one row's sum: share inside the row's band, slope times the key
// everywhere, for keys that are divided by the row's norm first.
template <typename T>
inline T pull(T key, T norm, T low, T high, T share, T slope) {
  const T relative = key / norm;
  return (inside(relative, low, high) ? share : T(0)) + slope * relative;
}

template <typename T>
void band_weights(T* row, int64_t columns, int64_t n, const Bands<T>& b) {
  const T norm = b.norm[n], low = b.low[n], high = b.high[n], share = b.share[n];
  const T slope = b.slope[n];
  for (int64_t c = 0; c < columns; ++c)
    row[c] = pull(row[c], norm, low, high, share, slope) +
             pull(row[c], b.norm[c], b.low[c], b.high[c], b.share[c], b.slope[c]);
}
