// Sums of exponentials over a tile of scores, and the softmax and sigmoid weights of their
// gradients.

// e^x of a float in operations that the compiler vectorises: 2^n e^r with |r| <= ln 2 / 2 and the
// Taylor polynomial of degree 7 (relative error below 2^-23). 0 below -87.3, infinite above 88 (no
// caller exceeds it), NaN for NaN.
inline float exponential(float x) {
  const float low = -87.3f, high = 88.f;
  const float inside = x < low ? low : (x > high ? high : x);
  const float shifted = inside * 1.44269504f + 12582912.f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.f;
  const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const int32_t exponent = (std::bit_cast<int32_t>(shifted) - 0x4B400000 + 127) << 23;
  const float y = p * std::bit_cast<float>(exponent);
  const float infinity = std::numeric_limits<float>::infinity();
  return x != x ? x : (x < low ? 0.f : (x > high ? infinity : y));
}

inline double exponential(double x) { return std::exp(x); }

// log(1 + e) for e in [0, 1], as 2 artanh(z) with z = e / (2 + e) <= 1 / 3: the error of seven
// terms is 5e-9.
inline float logarithm_of_one_plus(float e) {
  const float z = e / (2.f + e), q = z * z;
  float p = 1.f / 13;
  p = p * q + 1.f / 11;
  p = p * q + 1.f / 9;
  p = p * q + 1.f / 7;
  p = p * q + 1.f / 5;
  p = p * q + 1.f / 3;
  p = p * q + 1.f;
  return 2.f * z * p;
}

inline double logarithm_of_one_plus(double e) { return std::log1p(e); }

// Rescales a sum of e^(score - before) to a maximum that has increased to `now`, in fp64, since the
// maximum may increase with every tile.
template <typename T>
inline double rescaled(double sum, T before, T now) {
  const double lower = static_cast<double>(before) - now;
  return sum == 0 || before == now ? sum : sum * std::exp(lower);
}

template <typename T>
void row_exp_sum(const T* tile, int64_t columns, int64_t r0, int64_t r1, T* m, double* l) {
  constexpr int64_t kLanes = 64 / sizeof(T), kBlock = 512;
  for (int64_t r = r0; r < r1; ++r) {
    const T* row = tile + r * columns;
    T lane[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) lane[k] = m[r];
    int64_t c = 0;
    for (; c + kLanes <= columns; c += kLanes)
      for (int64_t k = 0; k < kLanes; ++k) lane[k] = row[c + k] > lane[k] ? row[c + k] : lane[k];
    T highest = m[r];
    for (int64_t k = 0; k < kLanes; ++k) highest = lane[k] > highest ? lane[k] : highest;
    for (; c < columns; ++c) highest = row[c] > highest ? row[c] : highest;
    // If all scores are -inf, 0 is subtracted instead: -inf - -inf is NaN. NaN reaches the sum.
    const T base = highest == -std::numeric_limits<T>::infinity() ? T(0) : highest;
    // A buffer in the first-level cache holds the exponentials, so that a plain loop vectorises.
    double sum = rescaled(l[r], m[r], base);
    for (int64_t b = 0; b < columns; b += kBlock) {
      const int64_t size = b + kBlock < columns ? kBlock : columns - b;
      T e[kBlock];
      for (int64_t k = 0; k < size; ++k) e[k] = exponential(row[b + k] - base);
      sum += row_sum<T>(size, Entry<T>{e});
    }
    m[r] = highest;
    l[r] = sum;
  }
}

template <typename T>
struct ColumnExponential {
  const T* base;
  T operator()(T score, int64_t c) const { return exponential(score - base[c]); }
};

template <typename T>
void column_exp_sum(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1, T* m,
                    double* l) {
  constexpr int64_t kBlock = 256;  // maxima and sums of a block fit the first-level cache
  for (int64_t b = c0; b < c1; b += kBlock) {
    const int64_t size = b + kBlock < c1 ? kBlock : c1 - b;
    T highest[kBlock];
    for (int64_t c = 0; c < size; ++c) highest[c] = m[b + c];
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = tile + r * columns + b;
      for (int64_t c = 0; c < size; ++c) highest[c] = row[c] > highest[c] ? row[c] : highest[c];
    }
    for (int64_t c = 0; c < size; ++c) {
      const T before = m[b + c];
      m[b + c] = highest[c];
      if (highest[c] == -std::numeric_limits<T>::infinity()) highest[c] = 0;
      l[b + c] = rescaled(l[b + c], before, highest[c]);
    }
    column_sum(tile + b, rows, columns, 0, size, ColumnExponential<T>{highest}, l + b);
  }
}

template <typename T>
void softmax_weights(T* tile, int64_t columns, int64_t r0, int64_t r1, const Softmaxes<T>& of) {
  const T *b = of.b, *highest = of.column_highest, *column = of.column;
  for (int64_t r = r0; r < r1; ++r) {
    T* s = tile + r * columns;
    const T a = of.a[r], base = of.row_highest[r], sum = of.row[r];
    // Differences are taken first: they are exact for two close scores.
    for (int64_t c = 0; c < columns; ++c)
      s[c] = a * exponential((s[c] - base) - sum) +
             b[c] * exponential((s[c] - highest[c]) - column[c]);
  }
}

template <typename T>
struct Softplus {
  T operator()(T x, int64_t) const {
    return (x <= 0 ? T(0) : x) + logarithm_of_one_plus(exponential(x > 0 ? -x : x));
  }
};

template <typename T>
void column_softplus_sum(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                         double* sum) {
  column_sum(tile, rows, columns, c0, c1, Softplus<T>{}, sum);
}

template <typename T>
void sigmoid_weights(T* tile, int64_t columns, int64_t r0, int64_t r1, const T* g) {
  for (int64_t r = r0; r < r1; ++r) {
    T* s = tile + r * columns;
    for (int64_t c = 0; c < columns; ++c) {
      const T e = exponential(s[c] > 0 ? -s[c] : s[c]);
      s[c] = g[c] * (s[c] > 0 ? T(1) : e) / (1 + e);
    }
  }
}
