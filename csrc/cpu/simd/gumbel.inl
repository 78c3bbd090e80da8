// Gumbel noise on scores. philox.h defines the layout of the noise.

// log(1 + x) for |x| <= sqrt(2) - 1, to the relative precision of fp32: the polynomial of Cephes'
// logf.
inline float logarithm_near_one(float x) {
  float p = 7.0376836292e-2f;
  p = p * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const float square = x * x;
  return x + (p * x * square - 0.5f * square);
}

// y = (1 + x) 2^exponent with |x| <= sqrt(2) - 1, for normal y > 0.
inline float split(float y, float* exponent) {
  const int32_t above = std::bit_cast<int32_t>(y) - 0x3F3504F3;  // sqrt(1 / 2)
  const int32_t e = above >> 23;
  *exponent = static_cast<float>(e);
  return std::bit_cast<float>(std::bit_cast<int32_t>(y) - e * (1 << 23)) - 1.f;
}

// (word + 1/2) / 2^32, rounded once. The halves of the word are converted as signed integers: only
// AVX512 converts unsigned ones.
inline float unit(uint32_t word) {
  const auto high = static_cast<float>(static_cast<int32_t>(word >> 16));
  const auto low = static_cast<float>(static_cast<int32_t>(word & 0xFFFF));
  return (high * 65536.f + (low + 0.5f)) * 0x1p-32f;
}

// A selection without a branch: gcc compiles a conditional expression to a branch here, and then
// does not vectorise below AVX512.
inline float choose(bool first, float a, float b) {
  const int32_t mask = -static_cast<int32_t>(first);
  return std::bit_cast<float>((std::bit_cast<int32_t>(a) & mask) |
                              (std::bit_cast<int32_t>(b) & ~mask));
}

inline void gumbel(const uint32_t* words, float* noise, int64_t size) {
  constexpr float kLog2 = 0.69314718f;
  for (int64_t k = 0; k < size; ++k) {
    const float u = unit(words[k]);
    // 1 - u from the complement of the word is precise near 0, but not near 1: there u is precise,
    // and the exponent is 0.
    const float complement = unit(~words[k]);
    float exponent;
    const float from_complement = split(complement, &exponent);
    const float x = choose(words[k] >> 30 == 0, -u, from_complement);  // u < 1 / 4
    const float exponential = -(exponent * kLog2 + logarithm_near_one(x));
    const float y = split(exponential, &exponent);
    noise[k] = -(exponent * kLog2 + logarithm_near_one(y));
  }
}

template <typename T>
void add_gumbel(T* row, int64_t columns, uint32_t i, int64_t first_column, T temperature,
                const Seed& seed, T* for_row) {
  constexpr int64_t kBlock = 64;  // counters, each for two columns and both directions
  for (int64_t begin = 0; begin < columns; begin += 2 * kBlock) {
    uint32_t word[4][kBlock];
    float noise[4][kBlock];
    const auto first = static_cast<uint32_t>((first_column + begin) / 2);
    for (uint32_t k = 0; k < kBlock; ++k) {
      const Words w =
          philox({first + k, i, seed.stream[0], seed.stream[1]}, seed.key[0], seed.key[1]);
      word[0][k] = w.a, word[1][k] = w.b, word[2][k] = w.c, word[3][k] = w.d;
    }
    gumbel(word[0], noise[0], 4 * kBlock);
    T *s = row + begin, *out = for_row + begin;
    const int64_t size = columns - begin < 2 * kBlock ? columns - begin : 2 * kBlock;
    for (int64_t k = 0; k < size / 2; ++k) {
      out[2 * k] = s[2 * k] + temperature * noise[0][k];
      out[2 * k + 1] = s[2 * k + 1] + temperature * noise[1][k];
      s[2 * k] += temperature * noise[2][k];
      s[2 * k + 1] += temperature * noise[3][k];
    }
    if (size % 2) {
      out[size - 1] = s[size - 1] + temperature * noise[0][size / 2];
      s[size - 1] += temperature * noise[2][size / 2];
    }
  }
}
