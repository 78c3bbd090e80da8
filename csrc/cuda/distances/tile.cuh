#pragma once
// Sums of differences of rows, tile by tile: sum[n][m] = sum over d of |x[n][d] - y[m][d]|, or of
// squares.
//
// A block compares kRows rows of x with kColumns rows of y; a thread keeps 8 x 8 sums of a 128 x
// 128 tile in registers. Rows pass through shared memory in their global layout, 16 columns at a
// time, and are read 4 columns at once: 16 reads of 16 bytes feed 512 instructions. fp32 and fp64
// are copied asynchronously; fp16 and bf16 pass through registers, where they are widened.

#include <type_traits>

#include "cuda/compat.cuh"

namespace itm::cuda {

// Rows of one matrix of a batch, contiguous and padded to a multiple of 4 columns: D and the
// strides are multiples of 4, and data is aligned to four values or 16 bytes.
template <typename T>
struct Rows {
  const T* data;
  int64_t count, stride, batch_stride;

  __device__ Rows of_batch(int64_t b) const {
    return {data + b * batch_stride, count, stride, batch_stride};
  }
};

// Moves a window of kRows x kColumns values from global to shared memory, rows kPitch apart, in two
// steps: fetch starts the loads, deposit stores those that are not asynchronous. Values beyond the
// matrix are zeros. Each thread keeps one pointer and derives the rest, which leaves registers to
// the sums.
template <typename T, int kRows, int kColumns, int kPitch, int kThreads>
class TileLoader {
  static constexpr bool kAsync = std::is_same_v<T, Wide<T>>;
  static constexpr int kInRow = kColumns / 4, kStep = kThreads / kInRow, kMine = kRows / kStep;
  static constexpr int kAtOnce = 16 / sizeof(T);
  static_assert(kThreads % kInRow == 0 && kRows % kStep == 0);

 public:
  __device__ __forceinline__ TileLoader(const Rows<T>& x, int64_t first, int64_t d)
      : from_(x.data + (first + row()) * x.stride + d + column()), stride_(x.stride) {}

  // `rows` and `columns` of the window lie in the matrix; they may exceed the window or be 0.
  __device__ __forceinline__ void fetch(const Shared<Wide<T>>& to, int at, int rows, int columns) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const T* from = from_ + i * kStep * stride_;
      const bool there = row() + i * kStep < rows && column() < columns;
      if constexpr (kAsync) {
        const int place = at + (row() + i * kStep) * kPitch + column();
#pragma unroll
        for (int k = 0; k < 4; k += kAtOnce)
          to.template copy_async<Bytes<16>>(place + k, from + k, there);
      } else {
        pending_[i] = there ? *reinterpret_cast<const Words*>(from) : Words{};
      }
    }
  }

  __device__ __forceinline__ void deposit(const Shared<Wide<T>>& to, int at) const {
    if constexpr (!kAsync) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        Four<float> wide;
#pragma unroll
        for (int k = 0; k < 4; ++k)
          wide.v[k] = widen(T{static_cast<uint16_t>(pending_[i].v[k / 2] >> k % 2 * 16)});
        to.write(at + (row() + i * kStep) * kPitch + column(), wide);
      }
    }
  }

  __device__ __forceinline__ void next_columns() { from_ += kColumns; }
  __device__ __forceinline__ void next_rows() { from_ += kRows * stride_; }

 private:
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kInRow; }
  static __device__ __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % kInRow * 4;
  }

  const T* from_;
  const int64_t stride_;
  // Two 16-bit values each: four separate ones would take a register each.
  using Words = Several<uint32_t, 2>;
  Words pending_[kAsync ? 1 : kMine];
};

// The rows of a window that exist, as a 32-bit number.
template <typename Size>
__device__ __forceinline__ int window(Size left, int most) {
  return left < most ? static_cast<int>(left) : most;
}

// The contribution of one column of a pair. The compiler turns |a - b| into two additions, the
// second of which takes its operand's magnitude.
struct Magnitude {
  template <typename C>
  static __device__ __forceinline__ C add(C sum, C a, C b) {
    return sum + magnitude(a - b);
  }
};
struct Square {
  template <typename C>
  static __device__ __forceinline__ C add(C sum, C a, C b) {
    const C difference = a - b;
    return sum + difference * difference;
  }
};
struct Product {
  template <typename C>
  static __device__ __forceinline__ C add(C sum, C a, C b) {
    return sum + a * b;
  }
};

// A visitor of chunks that ignores them.
struct IgnoreChunk {
  template <typename Memory>
  __device__ __forceinline__ void operator()(const Memory&, int) const {}
};

template <typename T_, int kRows_, int kColumns_, int kThreadRows_, int kThreadColumns_>
struct Tile {
  using T = T_;
  using C = Wide<T>;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kThreadRows = kThreadRows_, kThreadColumns = kThreadColumns_;
  static constexpr int kThreads = kThreadRows * kThreadColumns;
  static constexpr int kOwnRows = kRows / kThreadRows, kOwnColumns = kColumns / kThreadColumns;
  // 16 columns and 4 of padding: 8 threads that read 16 bytes of 8 adjacent rows use 32 different
  // banks. Two stages: a chunk takes some thousand cycles of additions, a load about one thousand.
  static constexpr int kDepth = 16, kPitch = kDepth + 4;
  static constexpr int kAtOnce = 2;
  static constexpr int kStage = (kRows + kColumns) * kPitch, kNumbers = 2 * kStage;
  static constexpr size_t kSharedBytes = kNumbers * sizeof(C);
  static_assert(kThreadRows % 4 == 0 && kThreadColumns % 8 == 0);

  C sum[kOwnRows][kOwnColumns];

  // A warp covers 4 x 8 threads: it reads 4 rows of x and 8 of y.
  static __device__ __forceinline__ int row(int i) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp / (kThreadColumns / 8) * 4 + lane / 8 + i * kThreadRows;
  }
  static __device__ __forceinline__ int column(int j) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp % (kThreadColumns / 8) * 8 + lane % 8 + j * kThreadColumns;
  }

  static __device__ __forceinline__ Shared<C> memory() {
    return Shared<C>::template all<kNumbers>();
  }

  // Sums columns [d, end) of rows from first_row and first_column on. After every chunk except the
  // last, stop(left, sum, rows, columns) may end the comparison, with `left` columns still to
  // fetch; all threads must agree. visit(shared, stage) is called for every chunk: rows of x start
  // at `stage`, followed by those of y, kPitch apart.
  template <typename Metric, typename Stop, typename Visit = IgnoreChunk>
  __device__ __forceinline__ bool compare(const Rows<T>& x, const Rows<T>& y, int64_t first_row,
                                          int64_t first_column, int64_t d, int64_t end, Stop&& stop,
                                          Visit&& visit = {}) {
    const auto shared = memory();
    TileLoader<T, kRows, kDepth, kPitch, kThreads> of_x(x, first_row, d);
    TileLoader<T, kColumns, kDepth, kPitch, kThreads> of_y(y, first_column, d);
    const int rows = window(x.count - first_row, kRows);
    const int columns = window(y.count - first_column, kColumns);
    int left = static_cast<int>(end - d);
    const auto fetch = [&](int stage) {
      of_x.fetch(shared, stage, rows, left);
      of_y.fetch(shared, stage + kRows * kPitch, columns, left);
      close_copies();
      left -= kDepth;
      of_x.next_columns();
      of_y.next_columns();
    };
    const auto deposit = [&](int stage) {
      of_x.deposit(shared, stage);
      of_y.deposit(shared, stage + kRows * kPitch);
    };
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) sum[i][j] = 0;
    fetch(0);
    deposit(0);
    for (int stage = 0;; stage = kStage - stage) {
      wait_for_copies<0>();
      __syncthreads();  // the chunk has arrived, and no thread reads the other stage any more
      const bool more = left > 0;
      if (more) fetch(kStage - stage);
      visit(shared, stage);
      add<Metric>(shared, stage);
      if (!more) return true;
      deposit(kStage - stage);
      if (stop(left, sum, rows, columns)) break;
    }
    wait_for_copies<0>();
    return false;
  }

 private:
  template <typename Metric>
  __device__ __forceinline__ void add(const Shared<C>& shared, int stage) {
    const int of_x = stage + row(0) * kPitch, of_y = stage + (kRows + column(0)) * kPitch;
#pragma unroll 1
    for (int k = 0; k < kDepth; k += kAtOnce) {
      Several<C, kAtOnce> a[kOwnRows];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i)
        a[i] = shared.template read<Several<C, kAtOnce>>(of_x + i * kThreadRows * kPitch + k);
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) {
        const auto b =
            shared.template read<Several<C, kAtOnce>>(of_y + j * kThreadColumns * kPitch + k);
#pragma unroll
        for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
          for (int e = 0; e < kAtOnce; ++e) sum[i][j] = Metric::add(sum[i][j], a[i].v[e], b.v[e]);
      }
    }
  }
};

// 128 x 128 pairs of fp32 for 256 threads; 64 x 64 of fp64, which has 1/2 to 1/64 of the units.
template <typename T>
using LargeTile = std::conditional_t<std::is_same_v<T, double>, Tile<T, 64, 64, 16, 16>,
                                     Tile<T, 128, 128, 16, 16>>;
// For few pairs, so that more multiprocessors share the work.
template <typename T>
using SmallTile = Tile<T, 32, 32, 8, 8>;

}  // namespace itm::cuda
