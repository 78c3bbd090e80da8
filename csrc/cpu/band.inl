// Bounded sums over similarities or distances. "Inside" is "not outside", so that a NaN is inside
// and shows; pairs that take no part are -inf.

template <typename T>
inline bool inside(T key, T low, T high) {
  return !(key <= low) && !(key >= high);
}

// Returns the sum over one row's keys inside the band; notes in words[c / 32] which those are.
template <typename T>
T band_row(const T* row, int64_t columns, const Band<T>& band, uint32_t* words) {
  constexpr int64_t kWord = 32;
  const T low = band.low, high = band.high, offset = band.offset, sign = band.sign;
  T lane[kWord] = {};
  int64_t c = 0;
  for (; c + kWord <= columns; c += kWord) {
    uint32_t word = 0;
    for (int64_t k = 0; k < kWord; ++k) {
      const bool in = inside(row[c + k], low, high);
      lane[k] += in ? offset + sign * row[c + k] : T(0);
      word |= in ? uint32_t(1) << k : 0;
    }
    words[c / kWord] = word;
  }
  T sum = 0;
  for (int64_t k = 0; k < kWord; ++k) sum += lane[k];
  if (c == columns) return sum;
  uint32_t word = 0;
  for (int64_t k = 0; c + k < columns; ++k) {
    if (!inside(row[c + k], low, high)) continue;
    sum += offset + sign * row[c + k];
    word |= uint32_t(1) << k;
  }
  words[c / kWord] = word;
  return sum;
}

// The same for columns, over up to 32 rows: sum[c] += ..., words[c] says which rows are inside.
template <typename T>
void band_columns(const T* tile, int64_t stride, int64_t rows, int64_t columns, const Band<T>& band,
                  T* sum, uint32_t* words) {
  constexpr int64_t kBlock = 256;  // sums and words of a block stay in the first-level cache
  const T low = band.low, high = band.high, offset = band.offset, sign = band.sign;
  for (int64_t b = 0; b < columns; b += kBlock) {
    const int64_t size = b + kBlock < columns ? kBlock : columns - b;
    T total[kBlock] = {};
    uint32_t word[kBlock] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = tile + r * stride + b;
      const uint32_t bit = uint32_t(1) << r;
      for (int64_t c = 0; c < size; ++c) {
        const bool in = inside(row[c], low, high);
        total[c] += in ? offset + sign * row[c] : T(0);
        word[c] |= in ? bit : 0;
      }
    }
    for (int64_t c = 0; c < size; ++c) sum[b + c] += total[c], words[b + c] = word[c];
  }
}

// weights[c] = share + shares[c] where bit c is set, else 0. Without a branch: in a dense band it
// would be guessed wrongly half the time.
template <typename T>
void band_weights(const uint32_t* words, int64_t columns, T share, const T* shares, T* weights) {
  constexpr int64_t kWord = 32;
  int64_t c = 0;
  for (; c + kWord <= columns; c += kWord) {
    const uint32_t word = words[c / kWord];
    for (int64_t k = 0; k < kWord; ++k) {
      const T both = share + shares[c + k];
      weights[c + k] = word & (uint32_t(1) << k) ? both : T(0);
    }
  }
  for (; c < columns; ++c)
    weights[c] = words[c / kWord] >> (c % kWord) & 1 ? share + shares[c] : T(0);
}

// The gradient of one pair in one row's sum: share inside the row's band, slope times the key
// everywhere, for keys that are divided by the row's norm first.
template <typename T>
inline T pull(T key, T norm, T low, T high, T share, T slope) {
  const T relative = key / norm;
  return (inside(relative, low, high) ? share : T(0)) + slope * relative;
}

template <typename T>
void relative_weights(T* row, int64_t columns, int64_t n, const RowBands<T>& b) {
  const T norm = b.norm[n], low = b.low[n], high = b.high[n], share = b.share[n];
  const T slope = b.slope[n];
  for (int64_t c = 0; c < columns; ++c)
    row[c] = pull(row[c], norm, low, high, share, slope) +
             pull(row[c], b.norm[c], b.low[c], b.high[c], b.share[c], b.slope[c]);
}
