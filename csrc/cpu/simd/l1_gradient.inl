// The gradient of l1 distances for both sides at once, on packed panels of columns of x and y.
//
// panel[row][kPanel] is dense, so that rows of y are read without the strides of D that evict one
// another from a cache. A row of y costs four operations for each vector of x in registers: a
// difference, its sign (one instruction in AVX-512, and in AVX2 for fp32; otherwise three), and a
// multiply-add for each side.

template <typename T>
constexpr int64_t kPanel = 2 * kVectorBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
int64_t panel_size() {
  return kPanel<T>;
}

// The sign of positive numbers. It is 2 in AVX2, because integer negation of the bits of 2.0f gives
// those of -2.0f.
#if defined(ITM_AVX2)
template <typename T>
constexpr T kSign = sizeof(T) == sizeof(float) ? 2 : 1;
#else
template <typename T>
constexpr T kSign = 1;
#endif

// Returns -kSign, 0 or kSign; x must not be -0. The caller handles NaN: another comparison would
// cost 8 %.
template <typename T>
inline typename Vector<T>::type sign_of(typename Vector<T>::type x) {
#if defined(ITM_AVX512)
  // One instruction with a table of results for each class of numbers: 0, 1, negative, positive.
  constexpr int32_t kResults = static_cast<int32_t>(0xa9a9a822);
  if constexpr (sizeof(T) == sizeof(float)) {
    typedef int table __attribute__((vector_size(kVectorBytes)));
    return __builtin_ia32_fixupimmps512_mask(x, x, table{} + kResults, 0, -1, 4);
  } else {
    typedef long long table __attribute__((vector_size(kVectorBytes)));
    return __builtin_ia32_fixupimmpd512_mask(x, x, table{} + kResults, 0, -1, 4);
  }
#else
  using V = typename Vector<T>::type;
  using Bits = typename Vector<T>::bits;
#if defined(ITM_AVX2)
  // The bits of a float as an integer have the sign of the float.
  if constexpr (sizeof(T) == sizeof(float))
    return reinterpret_cast<V>(__builtin_ia32_psignd256(reinterpret_cast<Bits>(kSign<T> + V{}),
                                                        reinterpret_cast<Bits>(x)));
#endif
  using Lane = std::remove_reference_t<decltype(Bits{}[0])>;
  const Bits sign = reinterpret_cast<Bits>(x) & std::numeric_limits<Lane>::min();
  return reinterpret_cast<V>((reinterpret_cast<Bits>(1 + V{}) ^ sign) & (x != 0));
#endif
}

// Scales sums, which hold kSign times their value while signs are added. Scaling the weights
// instead would wait for memory, a fifth of the time.
template <typename T>
inline void scale(T* sum, int64_t size, T factor) {
  if constexpr (kSign<T> != 1)
    for (int64_t k = 0; k < size; ++k) sum[k] *= factor;
}

// Adds the signs of kRows rows of x against all rows of y; without to_y only to the side of x.
template <typename T, int kRows, bool kBoth>
inline void sign_rows(const T* x, T* to_x, const T* y, T* to_y, const T* weight, int64_t stride,
                      int64_t count) {
  using V = typename Vector<T>::type;
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  V here[kRows][2], sum[kRows][2];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      __builtin_memcpy(&here[r][v], x + r * kPanel<T> + v * kLanes, sizeof(V));
      __builtin_memcpy(&sum[r][v], to_x + r * kPanel<T> + v * kLanes, sizeof(V));
    }
  for (int64_t k = 0; k < count; ++k) {
    V there[2], back[2];
    __builtin_memcpy(&there[0], y + k * kPanel<T>, sizeof(V));
    __builtin_memcpy(&there[1], y + k * kPanel<T> + kLanes, sizeof(V));
    if (kBoth) __builtin_memcpy(&back[0], to_y + k * kPanel<T>, sizeof(V));
    if (kBoth) __builtin_memcpy(&back[1], to_y + k * kPanel<T> + kLanes, sizeof(V));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V w = weight[r * stride + k] - V{};
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const V sign = sign_of<T>(here[r][v] - there[v]);
        sum[r][v] += sign * w;
        if (kBoth) back[v] -= sign * w;
      }
    }
    if (kBoth) __builtin_memcpy(to_y + k * kPanel<T>, &back[0], sizeof(V));
    if (kBoth) __builtin_memcpy(to_y + k * kPanel<T> + kLanes, &back[1], sizeof(V));
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v)
      __builtin_memcpy(to_x + r * kPanel<T> + v * kLanes, &sum[r][v], sizeof(V));
}

template <typename T, bool kBoth>
inline void sign_panels(const T* x, T* to_x, int64_t rows, const T* y, T* to_y, int64_t count,
                        const T* weight, int64_t stride) {
  constexpr int kRows = kVectorBytes == 64 ? 4 : 2;  // limited by registers
  constexpr int64_t kBlock = 256;  // rows of y whose panels fit a second-level cache
  constexpr T kBack = 1 / kSign<T>;
  scale(to_x, rows * kPanel<T>, kSign<T>);
  for (int64_t j = 0; j < count; j += kBlock) {
    const int64_t size = count - j < kBlock ? count - j : kBlock, at = j * kPanel<T>;
    T* to = kBoth ? to_y + at : nullptr;
    if (kBoth) scale(to, size * kPanel<T>, kSign<T>);
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows)
      sign_rows<T, kRows, kBoth>(x + r * kPanel<T>, to_x + r * kPanel<T>, y + at, to,
                                 weight + r * stride + j, stride, size);
    for (; r < rows; ++r)
      sign_rows<T, 1, kBoth>(x + r * kPanel<T>, to_x + r * kPanel<T>, y + at, to,
                             weight + r * stride + j, stride, size);
    if (kBoth) scale(to, size * kPanel<T>, kBack);
  }
  scale(to_x, rows * kPanel<T>, kBack);
}

// to_x[n] += sum over m of weight[n][m] sign(x[n] - y[m]); to_y[m] -= the sum over n of these
// terms.
template <typename T>
void add_sign_panels(const T* x, T* to_x, int64_t rows, const T* y, T* to_y, int64_t count,
                     const T* weight, int64_t stride) {
  if (to_y)
    sign_panels<T, true>(x, to_x, rows, y, to_y, count, weight, stride);
  else
    sign_panels<T, false>(x, to_x, rows, y, nullptr, count, weight, stride);
}
