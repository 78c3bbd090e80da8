// Bounded sums over similarities or distances. "Inside" means "not outside", so that NaN is inside
// and reaches the sum. Excluded pairs are -inf.

template <typename T>
inline bool inside(T key, T low, T high) {
  return !(key <= low) && !(key >= high);
}

// The same for vectors, with all bits of a lane set or none. Compilers vectorise the scalar form
// for AVX-512 only: without this form both sums took 7 times as long.
template <typename T>
inline typename Vector<T>::bits inside_lanes(typename Vector<T>::type key, T low, T high) {
  return ~((key <= low) | (key >= high));
}

// Returns a vector with bit l set in lane l.
template <typename T>
inline typename Vector<T>::bits lane_bits() {
  typename Vector<T>::bits bit = {};
  for (uint64_t l = 0; l < kVectorBytes / sizeof(T); ++l)
    bit[l] = static_cast<typename SameWidth<T>::type>(1) << l;
  return bit;
}

// Returns offset + sign * key in the lanes of a mask, 0 in the others.
template <typename T>
inline typename Vector<T>::type banded(typename Vector<T>::type key, const Band<T>& band,
                                       typename Vector<T>::bits mask) {
  using Bits = typename Vector<T>::bits;
  return reinterpret_cast<typename Vector<T>::type>(
      reinterpret_cast<Bits>(band.offset + band.sign * key) & mask);
}

// Returns the sum over the keys of one row inside the band and sets their bits in words[c / 32].
template <typename T>
T band_row(const T* row, int64_t columns, const Band<T>& band, uint32_t* words) {
  using V = typename Vector<T>::type;
  using Bits = typename Vector<T>::bits;
  constexpr int64_t kWord = 32, kLanes = kVectorBytes / sizeof(T), kParts = kWord / kLanes;
  V lane[kParts] = {};
  const Bits bit = lane_bits<T>();
  int64_t c = 0;
  for (; c + kWord <= columns; c += kWord) {
    Bits bits = {};
#pragma GCC unroll 16
    for (int64_t p = 0; p < kParts; ++p) {
      V key;
      __builtin_memcpy(&key, row + c + p * kLanes, sizeof(V));
      const Bits in = inside_lanes<T>(key, band.low, band.high);
      lane[p] += banded<T>(key, band, in);
      bits |= in & (bit << (p * kLanes));
    }
    uint32_t word = 0;
    for (int64_t l = 0; l < kLanes; ++l) word |= static_cast<uint32_t>(bits[l]);
    words[c / kWord] = word;
  }
  T sum = 0;
  for (int64_t p = 0; p < kParts; ++p)
    for (int64_t l = 0; l < kLanes; ++l) sum += lane[p][l];
  if (c == columns) return sum;
  uint32_t word = 0;
  for (int64_t k = 0; c + k < columns; ++k) {
    if (!inside(row[c + k], band.low, band.high)) continue;
    sum += band.offset + band.sign * row[c + k];
    word |= uint32_t(1) << k;
  }
  words[c / kWord] = word;
  return sum;
}

// The same for columns, over up to 32 rows: adds to sum[c] and sets the bits of rows inside in
// words[c]. Reads a cache line of every row at a time.
template <typename T>
void band_columns(const T* tile, int64_t stride, int64_t rows, int64_t columns, const Band<T>& band,
                  T* sum, uint32_t* words) {
  using V = typename Vector<T>::type;
  using Bits = typename Vector<T>::bits;
  constexpr int64_t kLanes = kVectorBytes / sizeof(T), kLine = 64 / sizeof(T);
  int64_t c = 0;
  for (; c + kLine <= columns; c += kLine) {
    V total[kLine / kLanes] = {};
    Bits bits[kLine / kLanes] = {}, bit = Bits{} + 1;
    for (int64_t r = 0; r < rows; ++r, bit <<= 1) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kLine / kLanes; ++v) {
        V key;
        __builtin_memcpy(&key, tile + r * stride + c + v * kLanes, sizeof(V));
        const Bits in = inside_lanes<T>(key, band.low, band.high);
        total[v] += banded<T>(key, band, in);
        bits[v] |= in & bit;
      }
    }
    for (int64_t k = 0; k < kLine; ++k) {
      sum[c + k] += total[k / kLanes][k % kLanes];
      words[c + k] = static_cast<uint32_t>(bits[k / kLanes][k % kLanes]);
    }
  }
  for (; c < columns; ++c) {
    T total = 0;
    uint32_t word = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const T key = tile[r * stride + c];
      if (!inside(key, band.low, band.high)) continue;
      total += band.offset + band.sign * key;
      word |= uint32_t(1) << r;
    }
    sum[c] += total, words[c] = word;
  }
}

// weights[c] = of_row + of_columns[c] where bit c is set, else 0. Without a branch, which would be
// mispredicted half the time in a dense band.
template <typename T>
void band_weights(const uint32_t* words, int64_t columns, T of_row, const T* of_columns,
                  T* weights) {
  using V = typename Vector<T>::type;
  using Bits = typename Vector<T>::bits;
  constexpr int64_t kWord = 32, kLanes = kVectorBytes / sizeof(T), kParts = kWord / kLanes;
  const Bits bit = lane_bits<T>();
  int64_t c = 0;
  for (; c + kWord <= columns; c += kWord) {
    const Bits word = Bits{} + static_cast<typename SameWidth<T>::type>(words[c / kWord]);
#pragma GCC unroll 16
    for (int64_t p = 0; p < kParts; ++p) {
      V both;
      __builtin_memcpy(&both, of_columns + c + p * kLanes, sizeof(V));
      both += of_row;
      const Bits in = (word & (bit << (p * kLanes))) != 0;
      const Bits kept = reinterpret_cast<Bits>(both) & in;
      __builtin_memcpy(weights + c + p * kLanes, &kept, sizeof(V));
    }
  }
  for (; c < columns; ++c)
    weights[c] = words[c / kWord] >> (c % kWord) & 1 ? of_row + of_columns[c] : T(0);
}

// Returns the gradient of a distance in the sum of one row, whose keys are distances divided by the
// row's norm: of_inside inside the row's band, plus slope times the key.
template <typename T>
inline T relative_weight(T distance, T norm, T low, T high, T of_inside, T slope) {
  const T key = distance / norm;
  return (inside(key, low, high) ? of_inside : T(0)) + slope * key;
}

template <typename T>
void relative_weights(T* row, int64_t columns, int64_t n, const RowBands<T>& b) {
  const T norm = b.norm[n], low = b.low[n], high = b.high[n], of_inside = b.inside[n];
  const T slope = b.slope[n];
  for (int64_t c = 0; c < columns; ++c)
    row[c] = relative_weight(row[c], norm, low, high, of_inside, slope) +
             relative_weight(row[c], b.norm[c], b.low[c], b.high[c], b.inside[c], b.slope[c]);
}
