// The gradient of stacked cross attention, after attend(): from cosines to products of rows, to the
// Gram matrix of the context, and to the norms of query rows.

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

// Returns x . y and y . y of two short rows in fp64. Reads up to a vector beyond their ends.
template <typename T>
inline void products_in_double(const T* x, const T* y, int64_t size, double& both, double& square) {
  using V = typename Vector<double>::type;
  using Bits = typename Vector<double>::bits;
  using Part = typename Narrow<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(double), kPlaces[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const Bits places = load<Bits>(kPlaces);
  V sum[2] = {};
  for (int64_t k = 0; k < size; k += kLanes) {
    const auto there = places < size - k;
    const V left = __builtin_convertvector(load<Part>(x + k), V);
    const V right = __builtin_convertvector(load<Part>(y + k), V);
    sum[0] += there ? left * right : V{};
    sum[1] += there ? right * right : V{};
  }
  double lane[2][kLanes];
  __builtin_memcpy(lane, sum, sizeof(lane));
  both = sum_of_lanes(lane[0]);
  square = sum_of_lanes(lane[1]);
}

// Turns the gradient of the logits in a row of t into that of the products, without the direct one.
//
// The gradient of a query of one row is 0 as the difference of two numbers. In fp32 their roundings
// were 3.8 times eager's error.
template <typename T>
inline void normalisation_gradient(const Attention<T>& a, const T* r, T* t, const T* over) {
  if (a.over_query == OverQuery::kNothing) return;
  T* y = a.column(3);
  if (a.over_query == OverQuery::kSoftmax) exponentials(a, r, over, y);
  for (int64_t j = 0; j < a.queries; ++j, over += 2) {
    const int64_t begin = a.first[j] - a.first[0], end = a.first[j + 1] - a.first[0];
    if (a.over_query == OverQuery::kNorm) {
      double along, square;
      products_in_double(t + begin, r + begin, end - begin, along, square);
      // along * factor / norm, with factor = 1 / (norm + kLeastNorms).
      const T factor = over[1];
      const double back = square == 0 ? 0 : along / square * (1 - kLeastNorms * factor);
      for (int64_t w = begin; w < end; ++w) t[w] = static_cast<T>(t[w] - r[w] * back) * factor;
      continue;
    }
    for (int64_t w = begin; w < end; ++w) y[w] *= over[1];
    double along, square;
    products_in_double(t + begin, y + begin, end - begin, along, square);
    for (int64_t w = begin; w < end; ++w) t[w] = y[w] * static_cast<T>(t[w] - along);
  }
}

// After attend(): writes the gradient of the products s from that of the cosines to `out`, which
// may be s, without the part through the query's own norm, which own[w] times the query row is.
// Adds the gradient of the Gram matrix, times 2, to of_gram, on and above the diagonal.
//
// The softmax subtracts the mean of its gradient, which is 0 for a cosine: a cosine does not depend
// on |a|. The computed mean has the rounding that all rows share, several times that of one row.
template <typename T>
void attention_gradient(const Attention<T>& a, const T* s, int64_t stride, T* out,
                        int64_t out_stride, T* own, double* of_gram) {
  T *direct = a.column(0), *h = a.column(1), *r = a.column(2), *mean = a.column(4);
  const T *p = a.product(), *square = a.square(), *norms = a.norms(), *cosine = a.cosine(),
          *grad = a.of_cosine();
  const T least = T(kLeastNorms);
  for (int64_t w = 0; w < a.columns; ++w) {
    const bool small = norms[w] < least;
    direct[w] = grad[w] / (small ? least : norms[w]);
    h[w] = small ? T(0) : -direct[w] * p[w] / square[w];
    mean[w] = 0;
    own[w] = small ? T(0) : -grad[w] * cosine[w] / (a.query_norm[w] * a.query_norm[w]);
  }
  T* rest = a.column(3);  // the factors of columns in fp32; 1 in those in fp64
  for (int64_t w = 0; w < a.columns; ++w) {
    if (rest[w] != 0) add_in_double(a, h[w], w, of_gram);
    rest[w] = rest[w] != 0 ? T(0) : h[w];
  }
  add_gram_gradient(a, rest, of_gram);
  for (int64_t c = 0; c < a.rows; ++c) {
    const T *x = s + c * stride, *alpha = a.alpha + c * a.stride;
    T* t = a.attended + c * a.stride;
    for (int64_t w = 0; w < a.columns; ++w) {
      t[w] = direct[w] * x[w] + h[w] * t[w];
      mean[w] += alpha[w] * t[w];
    }
  }
  for (int64_t c = 0; c < a.rows; ++c) {
    const T *x = s + c * stride, *alpha = a.alpha + c * a.stride;
    T *t = a.attended + c * a.stride, *to = out + c * out_stride;
    for (int64_t w = 0; w < a.columns; ++w) t[w] = a.smooth * alpha[w] * (t[w] - mean[w]);
    rectify(a, x, r);
    normalisation_gradient(a, r, t, a.over + 2 * c * a.queries);
    if (a.clipped)
      for (int64_t w = 0; w < a.columns; ++w)
        to[w] = (x[w] > 0 ? t[w] : T(kSlope) * t[w]) + alpha[w] * direct[w];
    else
      for (int64_t w = 0; w < a.columns; ++w) to[w] = t[w] + alpha[w] * direct[w];
  }
}
