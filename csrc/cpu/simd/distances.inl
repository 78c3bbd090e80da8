// Distances from direct differences, for 4 rows and 4 vectors of columns at a time.
//
// The 16 accumulators stay in registers. Each loaded vector of columns is used for 4 rows, so that
// loads do not limit the loop. Columns are packed first: packed[d][c] for c in a group of kGroup.

constexpr int64_t kRows = 4, kVectors = 4;

template <typename T>
constexpr int64_t kGroup = kVectors * kVectorBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
int64_t group_size() {
  return kGroup<T>;
}

// Reads a cache line of every row at a time: rows a multiple of 4 KiB apart evict one another.
template <typename T>
void pack_columns(const T* y, int64_t columns, int64_t D, T* packed) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t first = 0; first < D; first += kLine) {
    const int64_t end = first + kLine < D ? first + kLine : D;
    for (int64_t c = 0; c < kGroup<T>; ++c) {
      const T* row = y + (c < columns ? c : columns - 1) * D;
      for (int64_t d = first; d < end; ++d) packed[d * kGroup<T> + c] = row[d];
    }
  }
}

template <typename T>
inline typename Vector<T>::type magnitude(typename Vector<T>::type x) {
  using Bits = typename Vector<T>::bits;
  using Lane = std::remove_reference_t<decltype(Bits{}[0])>;
  const Bits mask = Bits{} + std::numeric_limits<Lane>::max();  // all but the sign
  return reinterpret_cast<typename Vector<T>::type>(reinterpret_cast<Bits>(x) & mask);
}

template <typename T, bool kSquared>
inline void distance_rows(const T* x, int64_t rows, const T* packed, int64_t D, T* out,
                          int64_t stride, int64_t columns) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  for (int64_t r = 0; r < rows; r += kRows) {
    const T* row[kRows];
    for (int64_t k = 0; k < kRows; ++k) row[k] = x + (r + k < rows ? r + k : rows - 1) * D;
    V sum[kRows][kVectors] = {};
    for (int64_t d = 0; d < D; ++d) {
      // One vector at a time: the compiler keeps an array that is copied as a whole, or read at a
      // variable index, in memory, and the sums with it.
      V column[kVectors];
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v)
        __builtin_memcpy(&column[v], packed + d * kGroup<T> + v * kLanes, sizeof(V));
#pragma GCC unroll 4
      for (int64_t k = 0; k < kRows; ++k) {
        const T value = row[k][d];
#pragma GCC unroll 4
        for (int64_t v = 0; v < kVectors; ++v) {
          const V difference = value - column[v];
          sum[k][v] += kSquared ? difference * difference : magnitude<T>(difference);
        }
      }
    }
    T row_sums[kRows][kGroup<T>];
#pragma GCC unroll 4
    for (int64_t k = 0; k < kRows; ++k)
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v)
        __builtin_memcpy(&row_sums[k][v * kLanes], &sum[k][v], sizeof(V));
    for (int64_t k = 0; k < kRows && r + k < rows; ++k)
      for (int64_t c = 0; c < columns; ++c) out[(r + k) * stride + c] = row_sums[k][c];
  }
}

template <typename T>
void l1_rows(const T* x, int64_t rows, const T* packed, int64_t D, T* out, int64_t stride,
             int64_t columns) {
  distance_rows<T, false>(x, rows, packed, D, out, stride, columns);
}

template <typename T>
void squared_rows(const T* x, int64_t rows, const T* packed, int64_t D, T* out, int64_t stride,
                  int64_t columns) {
  distance_rows<T, true>(x, rows, packed, D, out, stride, columns);
}

// out[k] = |x - y[index[k]]|^2
template <typename T>
void squared_pairs(const T* x, const T* y, const int64_t* index, int64_t count, int64_t D, T* out) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  for (int64_t k = 0; k < count; ++k) {
    const T* row = y + index[k] * D;
    T lane[kLanes] = {}, sum = 0;
    int64_t d = 0;
    for (; d + kLanes <= D; d += kLanes)
      for (int64_t l = 0; l < kLanes; ++l)
        lane[l] += (x[d + l] - row[d + l]) * (x[d + l] - row[d + l]);
    for (; d < D; ++d) sum += (x[d] - row[d]) * (x[d] - row[d]);
    for (int64_t l = 0; l < kLanes; ++l) sum += lane[l];
    out[k] = sum;
  }
}
