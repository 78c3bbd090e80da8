// Distances from direct differences: 4 rows against 4 vectors of columns at a time.
//
// 16 accumulators stay in registers; each loaded vector of columns serves 4 rows, so that loads do
// not bound the loop. Columns are packed first: packed[d][c] for c in a group of kGroup.

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};

constexpr int64_t kRows = 4, kVectors = 4;

template <typename T>
constexpr int64_t kGroup = kVectors * kVectorBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
int64_t group_size() {
  return kGroup<T>;
}

template <typename T>
void pack_columns(const T* y, int64_t columns, int64_t D, T* packed) {
  for (int64_t d = 0; d < D; ++d)
    for (int64_t c = 0; c < kGroup<T>; ++c)
      packed[d * kGroup<T> + c] = y[(c < columns ? c : columns - 1) * D + d];
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
      V column[kVectors];
      __builtin_memcpy(column, packed + d * kGroup<T>, sizeof(column));
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
    for (int64_t k = 0; k < kRows && r + k < rows; ++k)
      for (int64_t c = 0; c < columns; ++c)
        out[(r + k) * stride + c] = sum[k][c / kLanes][c % kLanes];
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

// out += sum over rows of weight[r] times sign(x - y[r]), or times x - y[r]. Columns of out stay in
// registers while the rows pass by; rows of weight 0 are skipped, which bands have many of.
template <typename T, bool kSign>
inline void add_rows(T* out, const T* x, const T* y, const T* weight, int64_t rows, int64_t D) {
  using V = typename Vector<T>::type;
  using Bits = typename Vector<T>::bits;
  constexpr int64_t kLanes = kVectorBytes / sizeof(T);
  int64_t d = 0;
  for (; d + kVectors * kLanes <= D; d += kVectors * kLanes) {
    V sum[kVectors], here[kVectors], there[kVectors];
    __builtin_memcpy(sum, out + d, sizeof(sum));
    __builtin_memcpy(here, x + d, sizeof(here));
    for (int64_t r = 0; r < rows; ++r) {
      if (weight[r] == 0) continue;
      __builtin_memcpy(there, y + r * D + d, sizeof(there));
      const V w = V{} + weight[r];
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) {
        const V difference = here[v] - there[v];
        if (kSign) {
          const Bits more = difference > 0, less = difference < 0;
          sum[v] += reinterpret_cast<V>(reinterpret_cast<Bits>(w) & more);
          sum[v] -= reinterpret_cast<V>(reinterpret_cast<Bits>(w) & less);
        } else {
          sum[v] += w * difference;
        }
      }
    }
    __builtin_memcpy(out + d, sum, sizeof(sum));
  }
  for (; d < D; ++d)
    for (int64_t r = 0; r < rows; ++r) {
      const T difference = x[d] - y[r * D + d];
      const T sign = difference > 0 ? T(1) : (difference < 0 ? T(-1) : T(0));
      if (weight[r] != 0) out[d] += weight[r] * (kSign ? sign : difference);
    }
}

template <typename T>
void add_signs(T* out, const T* x, const T* y, const T* weight, int64_t rows, int64_t D) {
  add_rows<T, true>(out, x, y, weight, rows, D);
}

template <typename T>
void add_differences(T* out, const T* x, const T* y, const T* weight, int64_t rows, int64_t D) {
  add_rows<T, false>(out, x, y, weight, rows, D);
}
