#pragma once
// The gradient of l1 distances, out[n][d] = sum over m of weight[n][m] sign(x[n][d] - y[m][d]), or
// the same sum of weight[n][m] (x[n][d] - y[m][d]).
//
// A thread keeps 4 columns of 8 rows of x, and their sums, in registers. The rows of y and their
// weights pass through shared memory, 16 at a time. Every block adds in the order of y: the same
// inputs give the same bits, and no memory grows with N M D.

#include "cuda/distances/tile.cuh"

namespace itm::cuda {

// Dense weights with any strides.
template <typename T>
struct DenseWeights {
  static constexpr bool kSparse = false;
  const T* data;
  int64_t row_stride, column_stride, batch_stride;

  __device__ bool along_columns() const { return column_stride == 1; }
  __device__ const T* from(int64_t b, int64_t n, int64_t m) const {
    return data + b * batch_stride + n * row_stride + m * column_stride;
  }
  __device__ int64_t step(int rows, int columns) const {
    return rows * row_stride + columns * column_stride;
  }
  __device__ Wide<T> value(const T* at, int64_t, int64_t) const { return widen(*at); }
  __device__ bool is_set(const T*, int64_t) const { return true; }
  __device__ const T* advance(const T* at, int64_t, int columns) const {
    return at + columns * column_stride;
  }
};

// row_weight[n] + column_weight[m] where a bit is set, else 0. Chunks without a set bit are
// skipped.
template <typename T>
struct BitWeights {
  static constexpr bool kSparse = true;
  const uint32_t* bits;
  int64_t words;  // in a row
  const Wide<T>*row_weight, *column_weight;

  __device__ bool along_columns() const { return true; }
  __device__ const uint32_t* from(int64_t, int64_t n, int64_t m) const {
    return bits + n * words + m / 32;
  }
  __device__ int64_t step(int rows, int) const { return rows * words; }
  __device__ Wide<T> value(const uint32_t* at, int64_t n, int64_t m) const {
    return is_set(at, m) ? row_weight[n] + column_weight[m] : Wide<T>(0);
  }
  __device__ bool is_set(const uint32_t* at, int64_t m) const { return *at >> m % 32 & 1; }
  __device__ const uint32_t* advance(const uint32_t* at, int64_t m, int columns) const {
    return at + ((m + columns) / 32 - m / 32);
  }
};

// The contribution of one pair of values: two comparisons and two predicated additions. NaN takes
// neither addition; propagate_nan handles it.
struct Sign {
  static constexpr bool kHidesNan = true;
  template <typename C>
  static __device__ __forceinline__ void add(C& sum, C weight, C x, C y) {
    if (x > y) sum += weight;
    if (x < y) sum -= weight;
  }
};
struct Difference {
  static constexpr bool kHidesNan = false;
  template <typename C>
  static __device__ __forceinline__ void add(C& sum, C weight, C x, C y) {
    sum += weight * (x - y);
  }
};

template <typename T_, int kOwnRows_, int kThreadRows, int kThreadColumns>
struct GradientTile {
  using T = T_;
  using C = Wide<T>;
  static constexpr int kOwnRows = kOwnRows_, kThreads = kThreadRows * kThreadColumns;
  static constexpr int kRows = kOwnRows * kThreadRows, kColumns = 4 * kThreadColumns;
  static constexpr int kDepth = 16;               // rows of y at once
  static constexpr int kWeightPitch = kRows + 4;  // fewer bank conflicts among 16 writes
  static constexpr int kWeights = kDepth * kWeightPitch, kStage = kWeights + kDepth * kColumns;
  static constexpr size_t kSharedBytes = 2 * kStage * sizeof(C);
  static constexpr int kMine = kRows * kDepth / kThreads;  // weights loaded by a thread
  // Blocks per multiprocessor: this leaves 128 registers per thread; fp64, with two registers per
  // value, may use more.
  static constexpr int kBlocks = (std::is_same_v<T, double> ? 256 : 512) / kThreads;
  static_assert(kOwnRows % 4 == 0 && kRows * kDepth % kThreads == 0);

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int row(int r) {
    return thread() / kThreadColumns * 4 + r / 4 * kThreadRows * 4 + r % 4;
  }
  static __device__ __forceinline__ int column() { return thread() % kThreadColumns * 4; }

  template <typename Term>
  static __device__ __forceinline__ void add(const Shared<C>& shared, int stage,
                                             const Four<C> (&x)[kOwnRows], Four<C> (&sum)[kOwnRows],
                                             C& nothing) {
#pragma unroll 2
    for (int k = 0; k < kDepth; ++k) {
      const auto y = shared.template read<Four<C>>(stage + kWeights + k * kColumns + column());
      if constexpr (Term::kHidesNan)
        for (int e = 0; e < 4; ++e) nothing += y.v[e] * C(0);
#pragma unroll
      for (int r = 0; r < kOwnRows; r += 4) {
        const auto weight = shared.template read<Four<C>>(stage + k * kWeightPitch + row(r));
#pragma unroll
        for (int s = 0; s < 4; ++s)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            Term::add(sum[r + s].v[e], weight.v[s], x[r + s].v[e], y.v[e]);
      }
    }
  }
};

// Makes a sum NaN if x - y is NaN for any row of y: the sign of NaN is NaN.
template <typename Tile>
__device__ void propagate_nan(const Rows<typename Tile::T>& y, int64_t d, int columns,
                              const Four<typename Tile::C> (&x)[Tile::kOwnRows],
                              Four<typename Tile::C> (&sum)[Tile::kOwnRows]) {
  for (int64_t m = 0; m < y.count; ++m)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (Tile::column() >= columns) continue;
      const auto there = widen(y.data[m * y.stride + d + Tile::column() + e]);
#pragma unroll
      for (int r = 0; r < Tile::kOwnRows; ++r) {
        const auto difference = x[r].v[e] - there;
        if (difference != difference) sum[r].v[e] = difference;
      }
    }
}

// Loads the weights of a chunk: fetch reads them from global memory, deposit writes them to shared
// memory. A thread's weights are a step apart, along rows or along columns, following their layout.
template <typename Tile, typename Weights>
class WeightLoader {
  using C = typename Tile::C;
  using Pointer = decltype(Weights{}.from(0, 0, 0));

 public:
  __device__ __forceinline__ WeightLoader(const Weights& weights, int64_t b, int64_t first_row)
      : weights_(weights), along_(weights.along_columns()), n_(first_row + row(0)), m_(column(0)) {
    at_ = weights.from(b, n_, m_);
  }

  __device__ __forceinline__ void fetch(int rows, int columns) {
    any_ = false;
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i) {
      const Pointer at = at_ + i * weights_.step(row(1) - row(0), column(1) - column(0));
      const bool there = row(i) < rows && column(i) < columns;
      const int64_t n = n_ + row(i) - row(0), m = m_ + column(i) - column(0);
      pending_[i] = there ? weights_.value(at, n, m) : C(0);
      any_ |= there && weights_.is_set(at, m);
    }
    at_ = weights_.advance(at_, m_, Tile::kDepth);
    m_ += Tile::kDepth;
  }
  __device__ __forceinline__ void deposit(const Shared<C>& to, int stage) const {
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i)
      to.write(stage + column(i) * Tile::kWeightPitch + row(i), pending_[i]);
  }
  // Returns whether the chunk has any pair. A pair of weight 0 counts: it propagates NaN and Inf.
  __device__ __forceinline__ bool any() const { return any_; }

 private:
  static_assert(Tile::kThreads % Tile::kDepth == 0 && Tile::kThreads % Tile::kRows == 0);
  __device__ __forceinline__ int row(int i) const {
    return along_ ? Tile::thread() / Tile::kDepth + i * (Tile::kThreads / Tile::kDepth)
                  : Tile::thread() % Tile::kRows;
  }
  __device__ __forceinline__ int column(int i) const {
    return along_ ? Tile::thread() % Tile::kDepth
                  : Tile::thread() / Tile::kRows + i * (Tile::kThreads / Tile::kRows);
  }

  const Weights weights_;
  const bool along_;
  const int64_t n_;
  int64_t m_;
  Pointer at_;
  bool any_ = false;
  C pending_[Tile::kMine];
};

// Bit masks take more registers than dense weights: on sm_120 four too many for two large blocks
// per multiprocessor (16 bytes spill), so one block runs alone there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
template <typename Tile, typename Weights>
constexpr int kGradientBlocks =
    Weights::kSparse && Tile::kBlocks > 1 ? Tile::kBlocks / 2 : Tile::kBlocks;
#else
template <typename Tile, typename Weights>
constexpr int kGradientBlocks = Tile::kBlocks;
#endif

template <typename Tile, typename Term, typename Weights>
__global__ void __launch_bounds__(Tile::kThreads, kGradientBlocks<Tile, Weights>)
    distance_gradient_kernel(Rows<typename Tile::T> all_x, Rows<typename Tile::T> all_y,
                             Weights weights, int64_t D, int64_t first_block,
                             typename Tile::C* out) {  // [batch, N, D]
  wait_for_launch_before();
  using C = typename Tile::C;
  const int64_t N = all_x.count, M = all_y.count;
  const int64_t in_row = ceil_div(D, Tile::kColumns), block = first_block + blockIdx.x;
  const int64_t d = block % in_row * Tile::kColumns;
  const int64_t first_row = block / in_row % ceil_div(N, Tile::kRows) * Tile::kRows;
  const int64_t b = block / in_row / ceil_div(N, Tile::kRows);
  const Rows<typename Tile::T> x = all_x.of_batch(b);
  const int rows = window(N - first_row, Tile::kRows), columns = window(D - d, Tile::kColumns);

  Four<C> here[Tile::kOwnRows], sum[Tile::kOwnRows];
  C nothing = 0;  // stays 0 while all values are finite; one multiplication by 0 per 32 pairs
#pragma unroll
  for (int r = 0; r < Tile::kOwnRows; ++r) {
    const bool there = Tile::row(r) < rows && Tile::column() < columns;
    const auto* from = x.data + (first_row + Tile::row(r)) * x.stride + d + Tile::column();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      here[r].v[e] = there ? widen(from[e]) : C(0);
      sum[r].v[e] = 0;
      if constexpr (Term::kHidesNan) nothing += here[r].v[e] * C(0);
    }
  }

  const auto shared = Shared<C>::template all<2 * Tile::kStage>();
  TileLoader<typename Tile::T, Tile::kDepth, Tile::kColumns, Tile::kColumns, Tile::kThreads> of_y(
      all_y.of_batch(b), 0, d);
  WeightLoader<Tile, Weights> of_weights(weights, b, first_row);
  const auto fetch = [&](int64_t m, int stage) {
    of_y.fetch(shared, stage + Tile::kWeights, window(M - m, Tile::kDepth), columns);
    close_copies();
    of_y.next_rows();
    of_weights.fetch(rows, window(M - m, Tile::kDepth));
  };
  const auto deposit = [&](int stage) {
    of_y.deposit(shared, stage + Tile::kWeights);
    of_weights.deposit(shared, stage);
  };
  fetch(0, 0);
  deposit(0);
  for (int64_t m = 0; m < M; m += Tile::kDepth) {
    const int stage = static_cast<int>(m / Tile::kDepth % 2) * Tile::kStage;
    const bool more = m + Tile::kDepth < M;
    wait_for_copies<0>();
    bool any = true;
    if constexpr (Weights::kSparse)
      any = __syncthreads_or(of_weights.any());
    else
      __syncthreads();
    if (more) fetch(m + Tile::kDepth, Tile::kStage - stage);
    if (any) Tile::template add<Term>(shared, stage, here, sum, nothing);
    if (more) deposit(Tile::kStage - stage);
  }
  if constexpr (Term::kHidesNan)
    if (nothing != 0) propagate_nan<Tile>(all_y.of_batch(b), d, columns, here, sum);
#pragma unroll
  for (int r = 0; r < Tile::kOwnRows; ++r)
    if (Tile::row(r) < rows && Tile::column() < columns)
      *reinterpret_cast<Four<C>*>(out + (b * N + first_row + Tile::row(r)) * D + d +
                                  Tile::column()) = sum[r];
}

// 64 rows by 128 columns, or 16 by 64 for small problems; fp64 keeps half as many rows.
template <typename T>
using LargeGradientTile = GradientTile<T, std::is_same_v<T, double> ? 4 : 8, 8, 32>;
template <typename T>
using SmallGradientTile = GradientTile<T, 4, 4, 16>;

}  // namespace itm::cuda
