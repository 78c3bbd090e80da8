// Sums of listed rows, products of two rows, and counts along a row.

// out[d] = sum over k of x[rows[k]][d], for `size` columns of rows `stride` apart. Blocks of 32
// rows are summed separately and added up in fp64.
template <typename T>
void sum_of_rows(const T* x, int64_t stride, const int64_t* rows, int64_t count, T* out,
                 int64_t size) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = kVectorBytes / sizeof(T), kAtOnce = 32;
  int64_t d = 0;
  for (; d + kVectors * kLanes <= size; d += kVectors * kLanes) {
    double total[kVectors * kLanes] = {};
    for (int64_t begin = 0; begin < count; begin += kAtOnce) {
      const int64_t end = begin + kAtOnce < count ? begin + kAtOnce : count;
      V sum[kVectors] = {};
      for (int64_t k = begin; k < end; ++k) {
        V here[kVectors];
        __builtin_memcpy(here, x + rows[k] * stride + d, sizeof(here));
#pragma GCC unroll 4
        for (int64_t v = 0; v < kVectors; ++v) sum[v] += here[v];
      }
      T part[kVectors * kLanes];
      __builtin_memcpy(part, sum, sizeof(part));
      for (int64_t k = 0; k < kVectors * kLanes; ++k) total[k] += part[k];
    }
    for (int64_t k = 0; k < kVectors * kLanes; ++k) out[d + k] = static_cast<T>(total[k]);
  }
  for (; d < size; ++d) {
    double total = 0;
    for (int64_t begin = 0; begin < count; begin += kAtOnce) {
      const int64_t end = begin + kAtOnce < count ? begin + kAtOnce : count;
      T sum = 0;
      for (int64_t k = begin; k < end; ++k) sum += x[rows[k] * stride + d];
      total += sum;
    }
    out[d] = static_cast<T>(total);
  }
}

// Returns the product of two rows, summed in fp64 in the same order for all instruction sets. The
// terms of fp32 rows are exact.
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
RankCounts count_above(const T* row, int64_t columns, T limit) {
  typename SameWidth<T>::type above = 0, equal = 0;  // a tile has fewer columns than 2^31
  for (int64_t c = 0; c < columns; ++c) {
    above += row[c] > limit;
    equal += row[c] == limit;
  }
  return {above, equal};
}
