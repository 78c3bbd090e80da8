// Stacked cross attention of one context and consecutive queries, from the products of their rows:
// normalised products, attention, the norms of what is attended to, cosines, and the gradient.
//
// Lanes run along query rows. Only the normalisation over a query sums along them.

constexpr double kLeastNorms = 1e-8;  // added to the norm of products; the least product of norms
constexpr double kSlope = 0.1;        // of the leaky rectifier at products up to 0

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

template <typename T>
inline void rectify(const Attention<T>& a, const T* x, T* out) {
  if (a.clipped)
    for (int64_t w = 0; w < a.columns; ++w) out[w] = x[w] > 0 ? x[w] : T(kSlope) * x[w];
  else
    for (int64_t w = 0; w < a.columns; ++w) out[w] = x[w];
}

// Writes the logits of a context row to out, and to `over` two numbers for every query: norm and
// reciprocal, or maximum and reciprocal sum.
template <typename T>
inline void logits(const Attention<T>& a, const T* r, T* out, T* over) {
  if (a.over_query == OverQuery::kNothing) {
    for (int64_t w = 0; w < a.columns; ++w) out[w] = a.smooth * r[w];
    return;
  }
  for (int64_t j = 0; j < a.queries; ++j, over += 2) {
    const int64_t begin = a.first[j] - a.first[0], end = a.first[j + 1] - a.first[0];
    if (a.over_query == OverQuery::kNorm) {
      over[0] = static_cast<T>(__builtin_sqrt(short_product(r + begin, r + begin, end - begin)));
      over[1] = 1 / (over[0] + T(kLeastNorms));
      const T factor = a.smooth * over[1];
      for (int64_t w = begin; w < end; ++w) out[w] = factor * r[w];
      continue;
    }
    T highest = -std::numeric_limits<T>::infinity(), sum = 0;
    for (int64_t w = begin; w < end; ++w) highest = r[w] > highest ? r[w] : highest;
    for (int64_t w = begin; w < end; ++w) out[w] = exponential(r[w] - highest);
    for (int64_t w = begin; w < end; ++w) sum += out[w];
    over[0] = highest;
    over[1] = 1 / sum;
    const T factor = a.smooth * over[1];
    for (int64_t w = begin; w < end; ++w) out[w] *= factor;
  }
}

// Writes alpha, and p = sum of alpha s.
template <typename T>
inline void softmax_over_context(const Attention<T>& a, const T* s, int64_t stride) {
  T *highest = a.column(0), *sum = a.column(1), *r = a.column(2), *p = a.product();
  for (int64_t w = 0; w < a.columns; ++w)
    highest[w] = -std::numeric_limits<T>::infinity(), sum[w] = 0, p[w] = 0;
  for (int64_t c = 0; c < a.rows; ++c) {
    T* out = a.alpha + c * a.stride;
    rectify(a, s + c * stride, r);
    logits(a, r, out, a.over + 2 * c * a.queries);
    for (int64_t w = 0; w < a.columns; ++w) highest[w] = out[w] > highest[w] ? out[w] : highest[w];
  }
  for (int64_t c = 0; c < a.rows; ++c) {
    T* e = a.alpha + c * a.stride;
    const T* x = s + c * stride;
    for (int64_t w = 0; w < a.columns; ++w) {
      e[w] = exponential(e[w] - highest[w]);
      sum[w] += e[w];
      p[w] += e[w] * x[w];
    }
  }
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

// Computes column w, which is of query j, in fp64: its products with the context, alpha, G alpha, p
// and |a|^2. The sum p of products that were rounded to fp32 would cancel like the norm.
template <typename T>
inline void in_double(const Attention<T>& a, int64_t j, int64_t w) {
  double *alpha = a.exact, *attended = a.exact + a.rows, sum = 0, along = 0, square = 0;
  double highest = -std::numeric_limits<double>::infinity();
  for (int64_t c = 0; c < a.rows; ++c) {
    const double s = product(a.context_rows + c * a.width, a.query_rows + w * a.width, a.width);
    const T* over = a.over + 2 * (c * a.queries + j);
    double x = a.clipped && !(s > 0) ? kSlope * s : s;
    if (a.over_query == OverQuery::kNorm) x *= over[1];
    if (a.over_query == OverQuery::kSoftmax) x = __builtin_exp(x - over[0]) * over[1];
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
  for (int64_t j = 0; j < a.queries && a.exact_gram; ++j)
    for (int64_t w = a.first[j] - a.first[0]; w < a.first[j + 1] - a.first[0]; ++w) {
      const T of_row = a.row * squares[w];
      if (!(4 * square[w] < (of_row < a.largest ? of_row : a.largest))) continue;
      in_double(a, j, w);
      exact[w] = 1;
      ++again;
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

// Adds alpha h alpha^T of column w in fp64: the sum of these times the context cancels like the
// norm.
template <typename T>
inline void add_in_double(const Attention<T>& a, double h, int64_t w, double* of_gram) {
  for (int64_t c = 0; c < a.rows; ++c) a.exact[c] = a.alpha[c * a.stride + w];
  for (int64_t c = 0; c < a.rows; ++c) {
    const double weight = h * a.exact[c];
    for (int64_t k = c; k < a.rows; ++k) of_gram[c * a.rows + k] += weight * a.exact[k];
  }
}

// of_gram += sum over columns of alpha h alpha^T, on and above the diagonal; entries below it are
// not defined.
template <typename T>
inline void add_gram_gradient(const Attention<T>& a, const T* h, double* of_gram) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T), kRows = Attention<T>::kRows;
  constexpr int64_t kOthers = kVectorBytes == 64 ? kRows : kRows / 2;  // 32 or 16 registers
  for (int64_t c = 0; c < a.rows; c += kRows)
    for (int64_t k = c; k < a.rows; k += kOthers) {
      V sum[kRows][kOthers] = {};
      for (int64_t w = 0; w < a.columns; w += kLanes) {
        const T *left = a.alpha + c * a.stride + w, *right = a.alpha + k * a.stride + w;
        const V weight = load<V>(h + w);
        V other[kOthers];
#pragma GCC unroll 4
        for (int64_t o = 0; o < kOthers; ++o) other[o] = load<V>(right + o * a.stride) * weight;
#pragma GCC unroll 4
        for (int64_t r = 0; r < kRows; ++r) {
          const V alpha = load<V>(left + r * a.stride);
#pragma GCC unroll 4
          for (int64_t o = 0; o < kOthers; ++o) sum[r][o] += alpha * other[o];
        }
      }
      for (int64_t r = 0; r < kRows && c + r < a.rows; ++r)
        for (int64_t o = 0; o < kOthers && k + o < a.rows; ++o) {
          T lane[kLanes];
          __builtin_memcpy(lane, &sum[r][o], sizeof(lane));
          of_gram[(c + r) * a.rows + k + o] += sum_of_lanes(lane);
        }
    }
}

// Turns the gradient of the logits in a row of t into that of the products, without the direct one.
template <typename T>
inline void normalisation_gradient(const Attention<T>& a, const T* r, T* t, const T* over) {
  if (a.over_query == OverQuery::kNothing) return;
  T* y = a.column(3);
  for (int64_t j = 0; j < a.queries; ++j, over += 2) {
    const int64_t begin = a.first[j] - a.first[0], end = a.first[j + 1] - a.first[0];
    if (a.over_query == OverQuery::kNorm) {
      const T along = short_product(t + begin, r + begin, end - begin);
      const T factor = over[1], back = over[0] == 0 ? T(0) : along * factor * factor / over[0];
      for (int64_t w = begin; w < end; ++w) t[w] = t[w] * factor - r[w] * back;
      continue;
    }
    for (int64_t w = begin; w < end; ++w) y[w] = exponential(r[w] - over[0]) * over[1];
    const T along = short_product(t + begin, y + begin, end - begin);
    for (int64_t w = begin; w < end; ++w) t[w] = y[w] * (t[w] - along);
  }
}

// After attend(): turns the products s into their gradient from that of the cosines, without the
// part through the query's own norm, which own[w] times the query row is. Adds the gradient of the
// Gram matrix, times 2, to of_gram, on and above the diagonal.
//
// The softmax subtracts the mean of its gradient: 0 of a cosine, which does not depend on |a|.
template <typename T>
void attention_gradient(const Attention<T>& a, T* s, int64_t stride, T* own, double* of_gram) {
  T *direct = a.column(0), *h = a.column(1), *r = a.column(2), *mean = a.column(4);
  const T *p = a.product(), *square = a.square(), *norms = a.norms(), *cosine = a.cosine(),
          *grad = a.of_cosine();
  const T least = T(kLeastNorms);
  for (int64_t w = 0; w < a.columns; ++w) {
    const bool small = norms[w] < least;
    direct[w] = grad[w] / (small ? least : norms[w]);
    h[w] = small ? T(0) : -direct[w] * p[w] / square[w];
    mean[w] = small ? direct[w] * p[w] : T(0);
    own[w] = small ? T(0) : -grad[w] * cosine[w] / (a.query_norm[w] * a.query_norm[w]);
  }
  T* rest = a.column(3);  // the factors of columns in fp32; 1 in those in fp64
  for (int64_t w = 0; w < a.columns; ++w) {
    if (rest[w] != 0) add_in_double(a, h[w], w, of_gram);
    rest[w] = rest[w] != 0 ? T(0) : h[w];
  }
  add_gram_gradient(a, rest, of_gram);
  for (int64_t c = 0; c < a.rows; ++c) {
    T *x = s + c * stride, *t = a.attended + c * a.stride;
    const T* alpha = a.alpha + c * a.stride;
    for (int64_t w = 0; w < a.columns; ++w)
      t[w] = a.smooth * alpha[w] * (direct[w] * x[w] + h[w] * t[w] - mean[w]);
    rectify(a, x, r);
    normalisation_gradient(a, r, t, a.over + 2 * c * a.queries);
    if (a.clipped)
      for (int64_t w = 0; w < a.columns; ++w)
        x[w] = (x[w] > 0 ? t[w] : T(kSlope) * t[w]) + alpha[w] * direct[w];
    else
      for (int64_t w = 0; w < a.columns; ++w) x[w] = t[w] + alpha[w] * direct[w];
  }
}
