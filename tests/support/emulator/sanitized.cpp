// The launchers under the sanitizers. Every buffer has exactly the required size, and every sum is
// compared with a loop.

#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "cuda/compat.cuh"
#include "cuda/distances/distance_gradient.h"
#include "cuda/distances/intra_modal.h"
#include "cuda/small_batch/dot_products.h"
#include "cuda/small_batch/grid_sum.cuh"
#include "cuda/small_batch/imc.h"
#include "cuda/small_batch/info_cmr.h"
#include "cuda/small_batch/info_nce.h"
#include "cuda/small_batch/kmeans.h"
#include "cuda/small_batch/kmeans_plus_plus.h"
#include "cuda/small_batch/log_sum_exp.h"
#include "cuda/small_batch/max_of_hinges.h"
#include "cuda/small_batch/rbf_synthesis.h"
#include "cuda/small_batch/sigmoid.h"
#include "cuda/small_batch/sigmoid_total.h"
#include "cuda/small_batch/stored_band.h"
#include "cuda/small_batch/sum_of_hinges.h"
#include "cuda/small_batch/unit_rows.h"

using namespace itm::cuda;

namespace {

int failures = 0;

void expect(double found, double wanted, const char* what) {
  if (std::abs(found - wanted) <= 1e-3 * (1 + std::abs(wanted))) return;
  if (++failures < 10) std::printf("%s: %g, not %g\n", what, found, wanted);
}

template <typename T>
std::vector<T> numbers(int64_t size, std::mt19937& random) {
  std::vector<T> found(size);
  // Multiples of 1/8: exact in fp16 and bf16, with exact sums in fp32.
  for (T& x : found) {
    const auto eighths = static_cast<float>(static_cast<int>(random() % 33) - 16);
    if constexpr (std::is_same_v<T, double>)
      x = eighths / 8;
    else
      narrow(eighths / 8, x);
  }
  return found;
}

template <typename T>
Matrix matrix(const std::vector<T>& data, int64_t rows, int64_t D) {
  return {data.data(), rows, D, rows * D};
}

template <typename T>
struct Problem {
  Type type;
  int64_t batch, N, M, D;
  std::vector<T> x, y;

  Problem(Type type, int64_t batch, int64_t N, int64_t M, int64_t D, std::mt19937& random)
      : type(type),
        batch(batch),
        N(N),
        M(M),
        D(D),
        x(numbers<T>(batch * N * D, random)),
        y(numbers<T>(batch * M * D, random)) {}

  double at(const std::vector<T>& rows, int64_t row, int64_t d) const {
    return widen(rows[row * D + d]);
  }

  void compare() const {
    const DistancePlan plan = plan_distances(batch, N, M, D);
    std::vector<T> out(batch * N * M);
    std::vector<Wide<T>> partial(plan.parts > 1 ? plan.parts * batch * N * M : 0);
    distances(type, Metric::kL1, matrix(x, N, D), matrix(y, M, D), batch, D, plan, out.data(),
              partial.data(), nullptr);
    for (int64_t i = 0; i < batch * N * M; ++i) {
      double sum = 0;
      for (int64_t d = 0; d < D; ++d)
        sum += std::abs(at(x, i / M, d) - at(y, i / M / N * M + i % M, d));
      T wanted;
      narrow(static_cast<Wide<T>>(sum), wanted);
      expect(widen(out[i]), widen(wanted), "distance");
    }
  }

  void gradient(std::mt19937& random) const {
    const auto weights = numbers<T>(batch * N * M, random);
    std::vector<Wide<T>> out(batch * N * D);
    distance_gradient(
        type, Metric::kL1, matrix(x, N, D), matrix(y, M, D),
        {.data = weights.data(), .row_stride = M, .column_stride = 1, .batch_stride = N * M}, batch,
        D, out.data(), nullptr);
    for (int64_t i = 0; i < batch * N * D; ++i) {
      double sum = 0;
      const int64_t row = i / D, d = i % D;
      for (int64_t m = 0; m < M; ++m) {
        const double difference = at(x, row, d) - at(y, row / N * M + m, d);
        sum += widen(weights[row * M + m]) * ((difference > 0) - (difference < 0));
      }
      expect(out[i], sum, "gradient");
    }
  }
};

// Sums over pairs of x within a band, as one panel of a triangle.
template <typename T>
void check_band(Type type, int64_t N, int64_t D, std::mt19937& random) {
  using C = Wide<T>;
  const auto x = numbers<T>(N * D, random);
  const Matrix rows = matrix(x, N, D);
  // Most pairs are above the band, so tiles stop early. The bounds lie between multiples of 1/8, so
  // no rounding decides.
  const C low = C(D * 0.2 + 0.06), high = C(D * 0.9 + 0.06);
  const int64_t side = band_side(type, N), tiles = ceil_div(N, side), words = ceil_div(N, 32);
  std::vector<uint8_t> finite(N);
  std::vector<int64_t> ids(N);
  for (int64_t n = 0; n < N; ++n) ids[n] = n / 2;
  std::vector<C> of_rows(tiles * tiles * side), of_columns(tiles * N), out(N);
  std::vector<double> total(N);
  std::vector<uint32_t> mask(N * words);
  find_finite(type, rows, D, finite.data(), nullptr);
  band(type, {Metric::kL1, &low, &high, false, ids.data(), finite.data()}, rows, D,
       {0, tiles, true, of_rows.data(), of_columns.data(), total.data(), out.data(), mask.data(),
        words},
       nullptr);
  for (int64_t n = 0; n < N; ++n) {
    double sum = 0;
    for (int64_t m = 0; m < N; ++m) {
      double delta = 0;
      for (int64_t d = 0; d < D; ++d) delta += std::abs(widen(x[n * D + d]) - widen(x[m * D + d]));
      const bool inside = delta > low && delta < high && ids[n] != ids[m];
      if (inside) sum += delta;
      expect(mask[n * words + m / 32] >> m % 32 & 1, inside, "bit");
    }
    expect(out[n], sum, "band");
  }
}

#include "sanitized_anchors.inl"
#include "sanitized_contrast.inl"
#include "sanitized_dot_products.inl"
#include "sanitized_info_cmr.inl"
#include "sanitized_small_batch.inl"
#include "sanitized_small_batch_imc.inl"

template <typename T>
void check(Type type, std::mt19937& random) {
  // One pair; small tiles with D in several parts; large, ragged tiles of both kernels.
  const int64_t sizes[][4] = {{1, 1, 1, 4}, {1, 33, 35, 140}, {44, 130, 3, 8}, {132, 2, 2, 4}};
  for (const auto& [batch, N, M, D] : sizes) {
    const Problem<T> problem(type, batch, N, M, D, random);
    problem.compare();
    problem.gradient(random);
  }
  check_band<T>(type, 1, 4, random);
  check_band<T>(type, 70, 140, random);
  check_kmeans<T>(type, 37, 9, 36, random);
  check_kmeans<T>(type, 5, 100, 132, random);  // more clusters than rows
  check_kmeans_plus_plus<T>(type, 37, 9, 36, random);
  check_synthesis<T>(type, 3, 37, 2, 36, random);
  check_synthesis<T>(type, 2, 70, 1, 8, random);  // a matrix that exceeds shared memory
  check_unit_rows<T>(type, 37, 12, random);
  check_unit_rows<T>(type, 5, 333, random);
  check_stored_band<T>(type, 37, 12, random);
  check_small_batch<T>(type, random);
  check_dot_products<T>(type, random);
  check_contrast<T>(type, random);
  check_info_cmr<T>(type, 5, 35, 12, 2, 3, random);
  check_info_cmr<T>(type, 70, 70, 4, 1, 0, random);  // matrices that exceed shared memory
}

// -- planted faults, which only the sanitizers can find ------------------------------------------

void blocks_meet(int* to) {
  if (threadIdx.x == 0) to[0] = static_cast<int>(blockIdx.x);
}

// Threads of one block exchange values through global memory.
template <bool kBarrier>
void threads_meet(int* to) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int* own = to + blockIdx.x * 2 * threads;
  own[thread] = thread;
  if (kBarrier) __syncthreads();
  own[threads + thread] = own[(thread + 1) % threads];
}

// Every block writes a value, and the last block adds them.
template <bool kTicket>
void all_meet(int* to) {
  const int blocks = static_cast<int>(gridDim.x);
  if (threadIdx.x == 1) to[1 + blockIdx.x] = static_cast<int>(blockIdx.x);
  bool last = static_cast<int>(blockIdx.x) + 1 == blocks;
  if constexpr (kTicket) last = is_last_block(reinterpret_cast<unsigned*>(to), blocks);
  if (threadIdx.x != 1 || !last) return;
  for (int i = 0; i < blocks; ++i) to[1 + blocks] += to[1 + i];
}

// An access that a device refuses and the host accepts.
void misaligned(int* to) { *reinterpret_cast<Four<int>*>(to + 1) = {}; }

int planted(const std::string& name) {
  const std::map<std::string, void (*)(int*)> kernels = {
      {"blocks", blocks_meet},    {"threads", threads_meet<false>}, {"barrier", threads_meet<true>},
      {"ticket", all_meet<true>}, {"all", all_meet<false>},         {"misaligned", misaligned}};
  std::vector<int> to(2 * 2 * 64);
  emulator::launch(kernels.at(name), {2}, {64}, 0, to.data());
  std::printf("clean\n");
  return 0;
}

}  // namespace

// Without an argument, runs all kernels; with "quick", those of fp32; otherwise, the named fault.
int main(int count, char** arguments) {
  emulator::settings = {emulator::Order::kRandom, 1};
  const std::string word = count > 1 ? arguments[1] : "";
  if (count > 1 && word != "quick") return planted(word);
  std::mt19937 random(0);
  check<float>(Type::kFloat, random);
  if (word == "quick") {
    if (!failures) std::printf("clean\n");
    return failures != 0;
  }
  check<double>(Type::kDouble, random);
  check<Half>(Type::kHalf, random);
  check<BFloat16>(Type::kBFloat16, random);
  check_band<float>(Type::kFloat, 1930, 4, random);  // tiles of 128 rows
  if (!failures) std::printf("clean\n");
  return failures != 0;
}
