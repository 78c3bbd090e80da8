// Rows scaled to length 1, as torch.nn.functional.normalize scales them, and the gradient behind.
// A row of length 0 has no direction: its unit row and its gradient are 0.

constexpr double kShortest = 1e-12;  // length that a shorter row is divided by

// What a row is divided by. NaN stays; over infinity everything finite is 0.
template <typename T>
T divisor_of(T length) {
  if (length == 0) return std::numeric_limits<T>::infinity();
  return length < T(kShortest) ? T(kShortest) : length;
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
  const T length = static_cast<T>(__builtin_sqrt(inner_product(x, x, D)));
  const T divisor = divisor_of(length);
  for (int64_t d = 0; d < D; ++d) out[d] = x[d] / divisor;
  return length;
}

// Writes the gradient of x from that of its unit row: along itself a unit vector does not move.
template <typename T>
void unit_gradient(const T* grad, const T* unit, T length, T* out, int64_t D) {
  const bool scaled = length > T(kShortest);
  const T along = scaled ? inner_product(grad, unit, D) : T(0);
  const T divisor = divisor_of(length);
  for (int64_t d = 0; d < D; ++d) out[d] = (grad[d] - along * unit[d]) / divisor;
}
