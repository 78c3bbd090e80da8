// Measures the machine's rate of fp32 instructions: independent multiply-adds on registers.
// limits.py compiles this file for the machine. Each thread runs 16 chains, which hide the latency.
#include <cstdint>

#if defined(__AVX512F__)
constexpr int lanes = 16;
#else
constexpr int lanes = 8;
#endif
typedef float vector __attribute__((vector_size(lanes * sizeof(float))));

extern "C" double multiply_add(int64_t steps, int threads) {
  double total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    vector zero = {}, factor = zero + 0.999f, term = zero + 0.001f * (thread + 1);
    vector chain[16];
    // The compiler would merge equal chains into one.
    for (int index = 0; index < 16; ++index) chain[index] = zero + float(index);
    for (int64_t step = 0; step < steps; ++step)
#pragma GCC unroll 16
      for (int index = 0; index < 16; ++index) chain[index] = chain[index] * factor + term;
    for (int index = 0; index < 16; ++index) total += chain[index][0];
  }
  return total;
}

extern "C" int chains() { return 16 * lanes; }
