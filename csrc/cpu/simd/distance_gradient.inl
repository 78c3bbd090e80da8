// Weighted sums of rows, differences and signs of differences, to which the gradients of distances
// reduce.

// The term of a row y: y itself, x - y, or the sign of x - y.
enum class Term { kRow, kDifference, kSign };

// out += weighted sums of the terms of rows index[k] of y (row k without index), for rows of x and
// out.
template <typename T>
struct WeightedSum {
  T* out;
  const T *x, *y;
  const int64_t* index;
  const T* weight;
  int64_t stride;  // between the weights of two rows
  int64_t count, D;
};

// Accumulates columns [d, d + kVectors V) of kRows rows in registers over all rows of y.
template <Term kTerm, typename V, int kRows, int kVectors, typename T>
inline void accumulate_columns(const WeightedSum<T>& p, int64_t d) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  V sum[kRows][kVectors], here[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      __builtin_memcpy(&sum[r][v], p.out + r * p.D + d + v * kLanes, sizeof(V));
      if (kTerm == Term::kRow) continue;
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
        if (kTerm == Term::kRow) {
          to += w * there;
        } else if (kTerm == Term::kDifference) {
          to += w * (here[r][v] - there);
        } else {
          // In this form both compile to masked additions.
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

template <Term kTerm, int kRows, int kVectors, typename T>
inline void accumulate(const WeightedSum<T>& p) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  int64_t d = 0;
  for (; d + kVectors * kLanes <= p.D; d += kVectors * kLanes)
    accumulate_columns<kTerm, V, kRows, kVectors>(p, d);
  for (; d + kLanes <= p.D; d += kLanes) accumulate_columns<kTerm, V, kRows, 1>(p, d);
  for (; d < p.D; ++d) accumulate_columns<kTerm, T, kRows, 1>(p, d);
}

// For a few listed rows of y: one row of x, 8 vectors wide, so that each row of y is read in long
// runs.
template <typename T>
void add_rows(T* out, const T* y, const int64_t* index, const T* weight, int64_t count, int64_t D) {
  accumulate<Term::kRow, 1, 8, T>({out, nullptr, y, index, weight, 0, count, D});
}

template <typename T>
void add_differences(T* out, const T* x, const T* y, const int64_t* index, const T* weight,
                     int64_t count, int64_t D) {
  accumulate<Term::kDifference, 1, 8, T>({out, x, y, index, weight, 0, count, D});
}

template <typename T>
void add_signs(T* out, const T* x, const T* y, const int64_t* index, const T* weight, int64_t count,
               int64_t D) {
  accumulate<Term::kSign, 1, 8, T>({out, x, y, index, weight, 0, count, D});
}

// For all rows of y: each loaded vector is used for 4 rows of x.
template <typename T>
void add_all_differences(T* out, const T* x, int64_t rows, const T* y, const T* weight,
                         int64_t stride, int64_t count, int64_t D) {
  constexpr auto kTerm = Term::kDifference;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    accumulate<kTerm, 4, 2, T>(
        {out + r * D, x + r * D, y, nullptr, weight + r * stride, stride, count, D});
  for (; r < rows; ++r)
    accumulate<kTerm, 1, 8, T>(
        {out + r * D, x + r * D, y, nullptr, weight + r * stride, stride, count, D});
}
