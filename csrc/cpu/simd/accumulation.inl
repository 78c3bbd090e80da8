// Sums that grow with the batch. A chain of additions in fp32 loses precision in proportion to its
// length (5e-4 of a sum of 32,768 terms of one sign and size). Here a chain has at most 32 terms,
// and chains are added up in fp64.

// Returns the sum of lanes, by halves, so that vectors of any length add them in the same order.
template <int kLanes, typename T>
inline T sum_of_lanes(T (&lane)[kLanes]) {
#pragma GCC unroll 5
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  return lane[0];
}

template <typename V, typename T>
inline V load(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}

// Returns the sum of term.at<T>(0), ..., term.at<T>(size - 1); at<V> returns a vector of terms. All
// vector lengths use 64 bytes of lanes.
template <typename T, typename Term>
inline double row_sum(int64_t size, const Term& term) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T), kVectorsOfLanes = 64 / sizeof(V);
  constexpr int64_t kStep = kLanes * kVectorsOfLanes, kBlock = 32 * kStep;
  double total = 0;
  for (int64_t b = 0; b < size; b += kBlock) {
    const int64_t end = b + kBlock < size ? b + kBlock : size;
    V lane[kVectorsOfLanes] = {};
    T rest = 0;
    int64_t c = b;
    for (; c + kStep <= end; c += kStep)
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectorsOfLanes; ++v) lane[v] += term.template at<V>(c + v * kLanes);
    for (; c < end; ++c) rest += term.template at<T>(c);
    T lanes[kStep];
    __builtin_memcpy(lanes, lane, sizeof(lanes));
    for (int64_t k = 0; k < kStep; ++k) rest += lanes[k];
    total += rest;
  }
  return total;
}

// The entries of a row as the terms of row_sum.
template <typename T>
struct Entry {
  const T* row;
  template <typename V>
  V at(int64_t c) const {
    return load<V>(row + c);
  }
};

// sum[c] += term(row[c], c) over the rows of a tile, for columns [c0, c1). Chains have 16 rows, of
// which tiles have a multiple: the order of the additions does not depend on the tiles.
template <typename T, typename Term>
inline void column_sum(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                       const Term& term, double* sum) {
  constexpr int64_t kBlock = 256, kChain = 16;  // the sums of a block fit the first-level cache
  for (int64_t b = c0; b < c1; b += kBlock) {
    const int64_t size = b + kBlock < c1 ? kBlock : c1 - b;
    for (int64_t first = 0; first < rows; first += kChain) {
      const int64_t end = first + kChain < rows ? first + kChain : rows;
      T part[kBlock] = {};
      for (int64_t r = first; r < end; ++r) {
        const T* row = tile + r * columns + b;
        for (int64_t c = 0; c < size; ++c) part[c] += term(row[c], b + c);
      }
      for (int64_t c = 0; c < size; ++c) sum[b + c] += part[c];
    }
  }
}
