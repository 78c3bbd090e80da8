// Sums of rows that an index names, products of two rows, and counts along a row.

// out[d] = sum over k of x[rows[k]][d], for `size` columns of rows `stride` apart. 64 rows at a
// time are summed apart from the total, which rounds less than one long chain of additions.
template <typename T>
void sum_of_rows(const T* x, int64_t stride, const int64_t* rows, int64_t count, T* out,
                 int64_t size) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = kVectorBytes / sizeof(T), kAtOnce = 64;
  int64_t d = 0;
  for (; d + kVectors * kLanes <= size; d += kVectors * kLanes) {
    V total[kVectors] = {};
    for (int64_t begin = 0; begin < count; begin += kAtOnce) {
      const int64_t end = begin + kAtOnce < count ? begin + kAtOnce : count;
      V sum[kVectors] = {};
      for (int64_t k = begin; k < end; ++k) {
        V here[kVectors];
        __builtin_memcpy(here, x + rows[k] * stride + d, sizeof(here));
#pragma GCC unroll 4
        for (int64_t v = 0; v < kVectors; ++v) sum[v] += here[v];
      }
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) total[v] += sum[v];
    }
    __builtin_memcpy(out + d, total, sizeof(total));
  }
  for (; d < size; ++d) {
    T total = 0;
    for (int64_t begin = 0; begin < count; begin += kAtOnce) {
      const int64_t end = begin + kAtOnce < count ? begin + kAtOnce : count;
      T sum = 0;
      for (int64_t k = begin; k < end; ++k) sum += x[rows[k] * stride + d];
      total += sum;
    }
    out[d] = total;
  }
}

// The sum of 32 lanes, in an order in which vectors of any length can add them.
template <typename T>
inline T sum_of_lanes(T (&lane)[32]) {
#pragma GCC unroll 5
  for (int64_t half = 16; half > 0; half /= 2)
    for (int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  return lane[0];
}

// The product of two rows: of fp32 exact terms, summed in fp64, in one order everywhere.
template <typename T>
double product(const T* x, const T* y, int64_t D) {
  constexpr int64_t kLanes = 32;
  double lane[kLanes] = {}, sum = 0;
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes)
    for (int64_t k = 0; k < kLanes; ++k)
      lane[k] += static_cast<double>(x[d + k]) * static_cast<double>(y[d + k]);
  for (; d < D; ++d) sum += static_cast<double>(x[d]) * static_cast<double>(y[d]);
  return sum + sum_of_lanes(lane);
}

template <typename T>
Standing count_above(const T* row, int64_t columns, T limit) {
  typename SameWidth<T>::type above = 0, equal = 0;  // a tile has fewer columns than 2^31
  for (int64_t c = 0; c < columns; ++c) {
    above += row[c] > limit;
    equal += row[c] == limit;
  }
  return {above, equal};
}
