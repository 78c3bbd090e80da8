// Distances from direct differences: 4 rows against 4 vectors of columns at a time.
//
// 16 accumulators stay in registers; each loaded vector of columns serves 4 rows, so that loads do
// not bound the loop. Columns are packed first: packed[d][c] for c in a group of kGroup.

constexpr int64_t kRows = 4, kVectors = 4;

template <typename T>
constexpr int64_t kGroup = kVectors * kVectorBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
int64_t group_size() {
  return kGroup<T>;
}

// A cache line of every row at a time: rows a multiple of 4 KiB apart evict one another.
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
      // Vector by vector: an array that is copied whole, or read at an index that is not constant,
      // lives in memory, and so would the sums.
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

// What a row y adds to the gradient of x: itself, x - y, or the sign of x - y.
enum class Pull { kRow, kDifference, kSign };

// Rows of x and out, with their weights, against rows index[k] of y (row k without index).
template <typename T>
struct Pulled {
  T* out;
  const T *x, *y;
  const int64_t* index;
  const T* weight;
  int64_t stride;  // between the weights of two rows
  int64_t count, D;
};

// Columns [d, d + kVectors V) of kRows rows stay in registers while the rows of y pass by.
template <Pull kPull, typename V, int kRows, int kVectors, typename T>
inline void pull_columns(const Pulled<T>& p, int64_t d) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  V sum[kRows][kVectors], here[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      __builtin_memcpy(&sum[r][v], p.out + r * p.D + d + v * kLanes, sizeof(V));
      if (kPull == Pull::kRow) continue;
      __builtin_memcpy(&here[r][v], p.x + r * p.D + d + v * kLanes, sizeof(V));
    }
  for (int64_t k = 0; k < p.count; ++k) {
    const T* row = p.y + (p.index ? p.index[k] : k) * p.D + d;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      V there;
      __builtin_memcpy(&there, row + v * kLanes, sizeof(V));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        V& to = sum[r][v];
        const V w = V{} + p.weight[r * p.stride + k];
        if (kPull == Pull::kRow) {
          to += w * there;
        } else if (kPull == Pull::kDifference) {
          to += w * (here[r][v] - there);
        } else {
          // Written so that both become additions under a mask.
          to = here[r][v] > there ? to + w : to;
          to = here[r][v] < there ? to - w : to;
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      __builtin_memcpy(p.out + r * p.D + d + v * kLanes, &sum[r][v], sizeof(V));
}

template <Pull kPull, int kRows, int kVectors, typename T>
inline void pull(const Pulled<T>& p) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  int64_t d = 0;
  for (; d + kVectors * kLanes <= p.D; d += kVectors * kLanes)
    pull_columns<kPull, V, kRows, kVectors>(p, d);
  for (; d + kLanes <= p.D; d += kLanes) pull_columns<kPull, V, kRows, 1>(p, d);
  for (; d < p.D; ++d) pull_columns<kPull, T, kRows, 1>(p, d);
}

// Few listed rows of y: one row of x, 8 vectors wide, so that each row of y is read in long runs.
template <typename T>
void add_rows(T* out, const T* y, const int64_t* index, const T* weight, int64_t count, int64_t D) {
  pull<Pull::kRow, 1, 8, T>({out, nullptr, y, index, weight, 0, count, D});
}

template <typename T>
void add_differences(T* out, const T* x, const T* y, const int64_t* index, const T* weight,
                     int64_t count, int64_t D) {
  pull<Pull::kDifference, 1, 8, T>({out, x, y, index, weight, 0, count, D});
}

template <typename T>
void add_signs(T* out, const T* x, const T* y, const int64_t* index, const T* weight, int64_t count,
               int64_t D) {
  pull<Pull::kSign, 1, 8, T>({out, x, y, index, weight, 0, count, D});
}

// All rows of y: each vector of it that is loaded serves 4 rows of x.
template <typename T>
void add_all_differences(T* out, const T* x, int64_t rows, const T* y, const T* weight,
                         int64_t stride, int64_t count, int64_t D) {
  constexpr auto kPull = Pull::kDifference;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    pull<kPull, 4, 2, T>(
        {out + r * D, x + r * D, y, nullptr, weight + r * stride, stride, count, D});
  for (; r < rows; ++r)
    pull<kPull, 1, 8, T>(
        {out + r * D, x + r * D, y, nullptr, weight + r * stride, stride, count, D});
}
