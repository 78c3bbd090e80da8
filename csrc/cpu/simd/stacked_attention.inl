// Stacked cross attention of one context and consecutive queries, from the products of their rows:
// normalised products, attention, the norms of what is attended to, and cosines.
//
// Lanes run along query rows. Only the normalisation over a query sums along them.

constexpr double kLeastNorms = 1e-8;  // added to the norm of products; the least product of norms
constexpr double kLargestExponent = 30;  // whose exponentials may be added
constexpr double kSlope = 0.1;           // of the leaky rectifier at products up to 0

// Returns x . y of two short rows.
template <typename T>
inline T short_product(const T* x, const T* y, int64_t size) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  V sum = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes) sum += load<V>(x + k) * load<V>(y + k);
  T lane[kLanes];
  __builtin_memcpy(lane, &sum, sizeof(lane));
  T total = sum_of_lanes(lane);
  for (; k < size; ++k) total += x[k] * y[k];
  return total;
}

// As many numbers as a vector of fp64 has.
template <typename T>
struct Narrow;
template <>
struct Narrow<float> {
  typedef float type __attribute__((vector_size(kVectorBytes / 2)));
};
template <>
struct Narrow<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};

// Returns the sum of a short row in fp64.
template <typename T>
inline double short_sum(const T* x, int64_t size) {
  using V = typename Vector<double>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(double);
  V sum = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes)
    sum += __builtin_convertvector(load<typename Narrow<T>::type>(x + k), V);
  double lane[kLanes];
  __builtin_memcpy(lane, &sum, sizeof(lane));
  double total = sum_of_lanes(lane);
  for (; k < size; ++k) total += x[k];
  return total;
}

template <typename T>
inline void rectify(const Attention<T>& a, const T* x, T* out) {
  if (a.clipped)
    for (int64_t w = 0; w < a.columns; ++w) out[w] = x[w] > 0 ? x[w] : T(kSlope) * x[w];
  else
    for (int64_t w = 0; w < a.columns; ++w) out[w] = x[w];
}

// Writes the exponentials of a context row, relative to the maxima of the queries in `over`. One
// query at a time would leave most lanes of a vector empty.
template <typename T>
inline void exponentials(const Attention<T>& a, const T* r, const T* over, T* out) {
  for (int64_t j = 0; j < a.queries; ++j)
    for (int64_t w = a.first[j] - a.first[0]; w < a.first[j + 1] - a.first[0]; ++w)
      out[w] = r[w] - over[2 * j];
  for (int64_t w = 0; w < a.columns; ++w) out[w] = exponential(out[w]);
}

// Writes the logits of a context row to out, and to `over` two numbers for every query: norm and
// reciprocal, or maximum and reciprocal sum.
template <typename T>
inline void logits(const Attention<T>& a, const T* r, T* out, T* over) {
  if (a.over_query == OverQuery::kNothing) {
    for (int64_t w = 0; w < a.columns; ++w) out[w] = a.smooth * r[w];
    return;
  }
  const bool softmax = a.over_query == OverQuery::kSoftmax;
  for (int64_t j = 0; j < a.queries && softmax; ++j) {
    T highest = -std::numeric_limits<T>::infinity();
    for (int64_t w = a.first[j] - a.first[0]; w < a.first[j + 1] - a.first[0]; ++w)
      highest = r[w] > highest ? r[w] : highest;
    over[2 * j] = highest;
  }
  if (softmax) exponentials(a, r, over, out);
  const T* from = softmax ? out : r;
  for (int64_t j = 0; j < a.queries; ++j, over += 2) {
    const int64_t begin = a.first[j] - a.first[0], end = a.first[j + 1] - a.first[0];
    if (softmax) {
      // All columns of the query share the rounding of the sum, several ulps in fp32.
      over[1] = static_cast<T>(1 / short_sum(out + begin, end - begin));
    } else {
      over[0] = static_cast<T>(__builtin_sqrt(short_product(r + begin, r + begin, end - begin)));
      over[1] = 1 / (over[0] + T(kLeastNorms));
    }
    const T factor = a.smooth * over[1];
    for (int64_t w = begin; w < end; ++w) out[w] = factor * from[w];
  }
}

// Replaces the logits of a context row by exponentials and adds these, and their products with s.
template <typename T>
inline void add_exponentials(const Attention<T>& a, const T* s, T* e) {
  const T* highest = a.column(0);
  T *sum = a.column(1), *p = a.product();
  for (int64_t w = 0; w < a.columns; ++w) {
    e[w] = exponential(e[w] - highest[w]);
    sum[w] += e[w];
    p[w] += e[w] * s[w];
  }
}

// Writes alpha, and p = sum of alpha s.
//
// Products that are normalised over a query are at most 1. Times a small `smooth` no maximum must
// be subtracted from them, and one pass over s does.
template <typename T>
inline void softmax_over_context(const Attention<T>& a, const T* s, int64_t stride) {
  T *highest = a.column(0), *sum = a.column(1), *r = a.column(2), *p = a.product();
  const bool bounded = a.over_query != OverQuery::kNothing && a.smooth <= T(kLargestExponent) &&
                       a.smooth >= -T(kLargestExponent);
  const T least = bounded ? T(0) : -std::numeric_limits<T>::infinity();
  for (int64_t w = 0; w < a.columns; ++w) highest[w] = least, sum[w] = 0, p[w] = 0;
  for (int64_t c = 0; c < a.rows; ++c) {
    const T* row = s + c * stride;
    T* out = a.alpha + c * a.stride;
    if (c + 1 < a.rows)
      for (int64_t w = 0; w < a.columns; w += 64 / sizeof(T)) __builtin_prefetch(row + stride + w);
    rectify(a, row, r);
    logits(a, r, out, a.over + 2 * c * a.queries);
    if (bounded)
      add_exponentials(a, row, out);
    else
      for (int64_t w = 0; w < a.columns; ++w)
        highest[w] = out[w] > highest[w] ? out[w] : highest[w];
  }
  for (int64_t c = 0; c < a.rows && !bounded; ++c)
    add_exponentials(a, s + c * stride, a.alpha + c * a.stride);
  for (int64_t w = 0; w < a.columns; ++w) sum[w] = 1 / sum[w], p[w] *= sum[w];
  for (int64_t c = 0; c < a.padded_rows(); ++c) {
    T* alpha = a.alpha + c * a.stride;
    int64_t w = 0;
    for (; c < a.rows && w < a.columns; ++w) alpha[w] *= sum[w];
    for (; w < a.stride; ++w) alpha[w] = 0;
  }
}

// Writes G alpha for the vectors at column w: 4 rows at a time, so that 8 sums are independent.
template <typename T>
inline void gram_product(const Attention<T>& a, int64_t w) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T), kRows = Attention<T>::kRows;
  const int64_t padded = a.padded_rows();
  for (int64_t c = 0; c < padded; c += kRows) {
    V sum[kRows][2] = {};
    for (int64_t k = 0; k < a.rows; ++k) {
      const T *alpha = a.alpha + k * a.stride + w, *g = a.gram + k * padded + c;
      const V left = load<V>(alpha), right = load<V>(alpha + kLanes);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kRows; ++r) sum[r][0] += g[r] * left, sum[r][1] += g[r] * right;
    }
    for (int64_t r = 0; r < kRows; ++r)
      __builtin_memcpy(a.attended + (c + r) * a.stride + w, sum[r], sizeof(sum[r]));
  }
}

// Returns the product of context row c and query row w in fp64.
template <typename T>
inline double product_in_double(const Attention<T>& a, int64_t c, int64_t w) {
  return product(a.context_rows + c * a.width, a.query_rows + w * a.width, a.width);
}

template <typename T>
inline double rectified(const Attention<T>& a, double s) {
  return a.clipped && !(s > 0) ? kSlope * s : s;
}

// Writes the factor that normalises the products of each context row over query j in fp64. With the
// factor of rounded products, those of a query of one row would no longer be equal, or opposite.
template <typename T>
inline void factors_in_double(const Attention<T>& a, int64_t j) {
  for (int64_t c = 0; c < a.rows; ++c) {
    const double highest = a.over[2 * (c * a.queries + j)];
    double sum = 0;
    for (int64_t w = a.first[j] - a.first[0]; w < a.first[j + 1] - a.first[0]; ++w) {
      const double x = rectified(a, product_in_double(a, c, w));
      sum += a.over_query == OverQuery::kNorm ? x * x : __builtin_exp(x - highest);
    }
    a.factors()[c] =
        1 / (a.over_query == OverQuery::kNorm ? __builtin_sqrt(sum) + kLeastNorms : sum);
  }
}

// Computes column w, which is of query j, in fp64: its products with the context, alpha, G alpha, p
// and |a|^2. The sum p of products that were rounded to fp32 would cancel like the norm.
template <typename T>
inline void in_double(const Attention<T>& a, int64_t j, int64_t w) {
  double *alpha = a.exact, *attended = a.exact + a.rows, sum = 0, along = 0, square = 0;
  double highest = -std::numeric_limits<double>::infinity();
  for (int64_t c = 0; c < a.rows; ++c) {
    const double s = product_in_double(a, c, w);
    double x = rectified(a, s);
    if (a.over_query == OverQuery::kSoftmax) x = __builtin_exp(x - a.over[2 * (c * a.queries + j)]);
    if (a.over_query != OverQuery::kNothing) x *= a.factors()[c];
    attended[c] = s;
    alpha[c] = a.smooth * x;
    highest = alpha[c] > highest ? alpha[c] : highest;
  }
  for (int64_t c = 0; c < a.rows; ++c) sum += alpha[c] = __builtin_exp(alpha[c] - highest);
  for (int64_t c = 0; c < a.rows; ++c) {
    alpha[c] /= sum;
    along += alpha[c] * attended[c];
    attended[c] = 0;
  }
  for (int64_t k = 0; k < a.rows; ++k) {
    const double* g = a.exact_gram + k * a.rows;
    for (int64_t c = 0; c < a.rows; ++c) attended[c] += alpha[k] * g[c];
  }
  for (int64_t c = 0; c < a.rows; ++c) {
    square += alpha[c] * attended[c];
    a.alpha[c * a.stride + w] = static_cast<T>(alpha[c]);
    a.attended[c * a.stride + w] = static_cast<T>(attended[c]);
  }
  a.product()[w] = static_cast<T>(along);
  a.square()[w] = static_cast<T>(square);
}

// Writes alpha, G alpha, p, |a|^2 and the cosines; returns how many columns are computed in fp64.
//
// The terms of |a|^2 = sum of alpha alpha' G may cancel. Those below 0 add up to at most `largest`,
// since alpha is a mean, and to at most `row` |alpha|^2, since `row` bounds the eigenvalues of the
// matrix of these entries. If 4 |a|^2 is less, more than 3 bits may be lost.
template <typename T>
int64_t attend(const Attention<T>& a, const T* s, int64_t stride) {
  softmax_over_context(a, s, stride);
  constexpr int64_t kStep = 2 * kVectorBytes / sizeof(T);
  for (int64_t w = 0; w < a.columns; w += kStep) gram_product(a, w);
  T *squares = a.column(0), *square = a.square();
  for (int64_t w = 0; w < a.columns; ++w) square[w] = squares[w] = 0;
  for (int64_t c = 0; c < a.rows; ++c) {
    const T *alpha = a.alpha + c * a.stride, *attended = a.attended + c * a.stride;
    for (int64_t w = 0; w < a.columns; ++w) {
      square[w] += alpha[w] * attended[w];
      squares[w] += alpha[w] * alpha[w];
    }
  }
  T* exact = a.column(3);  // attention_gradient reads it
  for (int64_t w = 0; w < a.stride; ++w) exact[w] = 0;
  int64_t again = 0;
  for (int64_t j = 0; j < a.queries && a.exact_gram; ++j) {
    bool known = a.over_query == OverQuery::kNothing;  // the factors of the query
    for (int64_t w = a.first[j] - a.first[0]; w < a.first[j + 1] - a.first[0]; ++w) {
      const T of_row = a.row * squares[w];
      if (!(4 * square[w] < (of_row < a.largest ? of_row : a.largest))) continue;
      if (!known) factors_in_double(a, j);
      known = true;
      in_double(a, j, w);
      exact[w] = 1;
      ++again;
    }
  }
  T *cosine = a.cosine(), *norms = a.norms();
  const T *p = a.product(), least = T(kLeastNorms);
  for (int64_t w = 0; w < a.columns; ++w) {
    square[w] = square[w] < 0 ? T(0) : square[w];
    norms[w] = static_cast<T>(__builtin_sqrt(square[w])) * a.query_norm[w];
    cosine[w] = p[w] / (norms[w] < least ? least : norms[w]);
  }
  return again;
}
