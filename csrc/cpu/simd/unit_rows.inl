// Rows normalised to norm 1, as by torch.nn.functional.normalize, and the gradient. A zero row has
// no direction: its unit row and its gradient are 0.

constexpr double kSmallestNorm = 1e-12;  // rows with a smaller norm are divided by it

// Returns the divisor of a row: infinity for a zero row, so that finite entries become 0. NaN for
// NaN.
template <typename T>
T divisor_of(T norm) {
  if (norm == 0) return std::numeric_limits<T>::infinity();
  return norm < T(kSmallestNorm) ? T(kSmallestNorm) : norm;
}

template <typename T>
T inner_product(const T* x, const T* y, int64_t size) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  T lane[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) lane[k] += x[d + k] * y[d + k];
  T sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  for (; d < size; ++d) sum += x[d] * y[d];
  return sum;
}

// Writes x / |x|; returns |x|.
template <typename T>
T unit_row(const T* x, T* out, int64_t D) {
  const T norm = static_cast<T>(__builtin_sqrt(inner_product(x, x, D)));
  const T divisor = divisor_of(norm);
  for (int64_t d = 0; d < D; ++d) out[d] = x[d] / divisor;
  return norm;
}

// Writes the gradient of x from that of its unit row, less its component along the unit row.
template <typename T>
void unit_gradient(const T* grad, const T* unit, T norm, T* out, int64_t D) {
  const bool scaled = norm > T(kSmallestNorm);
  const T along = scaled ? inner_product(grad, unit, D) : T(0);
  const T divisor = divisor_of(norm);
  for (int64_t d = 0; d < D; ++d) out[d] = (grad[d] - along * unit[d]) / divisor;
}
