#pragma once
// Sums over the pairs of one modality whose distance lies inside a band that is the same for all
// rows. The matrix is symmetric, so tiles on and above the diagonal contribute to the sums of their
// rows and of their columns, and write one bit per pair. The matrix itself is never stored.
//
// A sum of magnitudes never decreases, not even in fp32, because rounding is monotonic. Once no
// pair of a tile is below the upper bound, no later column of D can bring one back, and the tile
// stops. Only NaN could, so tiles with rows that are not finite never stop early.

#include "cuda/distances/tile.cuh"

namespace itm::cuda {

template <typename T>
struct Band {
  Rows<T> x;
  int64_t D;
  const int64_t* ids;        // [N] or null; pairs with equal ids are excluded
  const uint8_t* finite;     // [N]
  const Wide<T>*low, *high;  // one value each, on the device
  bool take_root, repel;     // repel sums high - delta
};

// Rows of tiles [first, first + count) out of `tiles`. In a triangle, each row starts at the
// diagonal.
struct Panel {
  int64_t first, count, tiles;
  bool triangle;

  // In a triangle, rows k and count - 1 - k together have as many tiles as any other such two.
  __host__ __device__ int64_t width() const {
    return triangle ? 2 * (tiles - first) - count + 1 : tiles;
  }
  int64_t blocks() const { return width() * (triangle ? ceil_div(count, 2) : count); }

  // Returns false for the second half of the middle row, which does not exist.
  __device__ bool place(int64_t block, int64_t& row, int64_t& column) const {
    const int64_t y = block / width(), x = block % width();
    row = first + y;
    column = triangle ? row + x : x;
    if (column < tiles) return true;
    row = first + count - 1 - y;
    column = row + x - (tiles - first - y);
    return row != first + y;
  }
};

// The output of a panel: partial sums, which are added in a fixed order, and bits.
template <typename C>
struct BandResult {
  C* of_rows;      // [tiles, count * kRows], or null
  C* of_columns;   // [count, N]
  uint32_t* mask;  // from the panel's first row on, or from row 0 for a triangle; or null
  int64_t words;   // in a row of the mask
};

template <typename Tile>
struct BandTile {
  using C = typename Tile::C;
  static constexpr int kSide = Tile::kRows, kAcross = Tile::kThreadColumns;
  static_assert(Tile::kRows == Tile::kColumns && Tile::kThreadRows == Tile::kThreadColumns);
  static_assert(Tile::kRows % 32 == 0);
  // Partial results of one row or column, one per thread, until they are added.
  static constexpr int kPitch = kAcross + 1, kSums = kSide * kPitch;
  static_assert(4 * kSums <= Tile::kNumbers);

  // Adds the partial sums of a row's or column's threads in increasing order.
  static __device__ C sum(const Shared<C>& shared, int at, int line) {
    C total = 0;
    for (int k = 0; k < kAcross; ++k) total += shared.read(at + line * kPitch + k);
    return total;
  }

  // Bits [32 word, + 32) of a line. Thread k holds the bits of k, k + kAcross, ...
  static __device__ uint32_t bits(const Shared<C>& shared, int at, int line, int word) {
    constexpr int kEach = 32 / kAcross;
    uint32_t found = 0;
    for (int k = 0; k < kAcross; ++k) {
      const auto own = shared.template read<uint32_t>(at + line * kPitch + k);
      for (int j = 0; j < kEach; ++j) found |= (own >> (word * kEach + j) & 1) << (k + j * kAcross);
    }
    return found;
  }

  // Writes the sums of `lines` lines to sums[line], and `words` words of bits per line to the mask.
  static __device__ void store(const Shared<C>& shared, int of_sums, int of_bits, int lines,
                               C* sums, uint32_t* mask, int64_t stride, int words) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int line = thread; sums && line < lines; line += Tile::kThreads)
      sums[line] = sum(shared, of_sums, line);
    for (int i = thread; mask && i < lines * words; i += Tile::kThreads)
      mask[i / words * stride + i % words] = bits(shared, of_bits, i / words, i % words);
  }
};

// Two blocks per multiprocessor leave 128 registers per thread, one too few on sm_100 and later (4
// bytes spill). There, a large tile may use more registers and one block runs alone.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBandThreads = 256;
#else
constexpr int kBandThreads = 512;
#endif

template <typename Tile, typename Metric>
__global__ void __launch_bounds__(Tile::kThreads, kBandThreads / Tile::kThreads)
    band_kernel(Band<typename Tile::T> band, Panel panel, int64_t first_block,
                BandResult<typename Tile::C> to) {
  wait_for_launch_before();
  using C = typename Tile::C;
  using Lines = BandTile<Tile>;
  constexpr int kSide = Tile::kRows, kChunksBetween = 4;
  constexpr uint32_t kOwnBits = (1u << Tile::kOwnRows) - 1;
  const int64_t N = band.x.count;
  const C low = *band.low, high = *band.high;
  Tile tile;
  bool complete = false;
  {
    int64_t row_tile, column_tile;
    if (!panel.place(first_block + block_index(), row_tile, column_tile)) return;
    bool finite = true;
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kSide; i += Tile::kThreads) {
      const int64_t n = (i < kSide ? row_tile : column_tile) * kSide + i % kSide;
      finite &= n >= N || band.finite[n];
    }
    const bool may_stop = !__syncthreads_or(!finite) && row_tile != column_tile;
    complete = tile.template compare<Metric>(
        band.x, band.x, row_tile * kSide, column_tile * kSide, 0, band.D,
        [&](int left, auto& sum, int rows, int columns) {
          if (!may_stop || left / Tile::kDepth % kChunksBetween) return false;
          C least = INFINITY;
#pragma unroll
          for (int i = 0; i < Tile::kOwnRows; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kOwnColumns; ++j)
              if (Tile::row(i) < rows && Tile::column(j) < columns)
                least = sum[i][j] < least ? sum[i][j] : least;
          return !__syncthreads_or((band.take_root ? root(least) : least) < high);
        });
  }

  int64_t row_tile, column_tile;
  panel.place(first_block + block_index(), row_tile, column_tile);
  const int rows = window(N - row_tile * kSide, kSide) - Tile::row(0);
  const int columns = window(N - column_tile * kSide, kSide) - Tile::column(0);
  const bool mirror = panel.triangle && row_tile != column_tile;
  C column_sum[Tile::kOwnColumns] = {};
  uint64_t column_bits = 0;  // kOwnRows bits per column; separate words would take 8 registers
  const auto shared = tile.memory();
  const int own_row = Tile::row(0), own_column = Tile::column(0);
  __syncthreads();  // the tile's last chunk has been read
#pragma unroll
  for (int i = 0; i < Tile::kOwnRows; ++i) {
    C row_sum = 0;
    uint32_t row_bits = 0;
    const int64_t n = row_tile * kSide + own_row + i * Tile::kThreadRows;
#pragma unroll
    for (int j = 0; j < Tile::kOwnColumns; ++j) {
      const int64_t m = column_tile * kSide + own_column + j * Tile::kThreadColumns;
      const C key = band.take_root ? root(tile.sum[i][j]) : tile.sum[i][j];
      // "Not outside", so that NaN counts as inside and propagates.
      bool inside = complete && !(key <= low) && !(key >= high);
      inside &= i * Tile::kThreadRows < rows && j * Tile::kThreadColumns < columns;
      if (inside && key == key) inside = band.ids ? band.ids[n] != band.ids[m] : n != m;
      const C value = inside ? (band.repel ? high - key : key) : C(0);
      row_sum += value;
      column_sum[j] += value;
      row_bits |= static_cast<uint32_t>(inside) << j;
      column_bits |= static_cast<uint64_t>(inside) << (j * Tile::kOwnRows + i);
    }
    const int at = (own_row + i * Tile::kThreadRows) * Lines::kPitch + own_column;
    shared.write(at, row_sum);
    shared.write(Lines::kSums + at, row_bits);
  }
#pragma unroll
  for (int j = 0; j < Tile::kOwnColumns; ++j) {
    const int at = (own_column + j * Tile::kThreadColumns) * Lines::kPitch + own_row;
    shared.write(2 * Lines::kSums + at, column_sum[j]);
    shared.write(3 * Lines::kSums + at,
                 static_cast<uint32_t>(column_bits >> j * Tile::kOwnRows) & kOwnBits);
  }
  __syncthreads();
  const int row_lines = window(N - row_tile * kSide, kSide);
  const int column_lines = window(N - column_tile * kSide, kSide);
  const int64_t row_in_panel = row_tile - panel.first;
  const int64_t mask_row = (panel.triangle ? row_tile : row_in_panel) * kSide;
  const int row_words = static_cast<int>(ceil_div(column_lines, 32));
  Lines::store(
      shared, 0, Lines::kSums, row_lines,
      to.of_rows ? to.of_rows + (column_tile * panel.count + row_in_panel) * kSide : nullptr,
      to.mask ? to.mask + mask_row * to.words + column_tile * (kSide / 32) : nullptr, to.words,
      row_words);
  if (mirror)
    Lines::store(
        shared, 2 * Lines::kSums, 3 * Lines::kSums, column_lines,
        to.of_columns ? to.of_columns + row_in_panel * N + column_tile * kSide : nullptr,
        to.mask ? to.mask + column_tile * kSide * to.words + row_tile * (kSide / 32) : nullptr,
        to.words, static_cast<int>(ceil_div(row_lines, 32)));
}

// total[n] += the panel's partial sums of row n; out[n] = total[n].
template <typename C>
__global__ void add_panel_kernel(Panel panel, int64_t N, int side, const C* of_rows,
                                 const C* of_columns, int64_t first_block, double* total, C* out) {
  wait_for_launch_before();
  const int64_t n = (first_block + blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= N) return;
  const int64_t tile = n / side, last = panel.first + panel.count;
  double sum = total[n];
  for (int64_t row = panel.first; row < last && row < tile; ++row)
    sum += of_columns[(row - panel.first) * N + n];
  if (tile >= panel.first && tile < last)
    for (int64_t column = tile; column < panel.tiles; ++column)
      sum += of_rows[column * panel.count * side + n - panel.first * side];
  total[n] = sum;
  out[n] = static_cast<C>(sum);
}

// finite[n] = whether all values of row n are finite; one warp per row.
template <typename T>
__global__ void finite_rows_kernel(Rows<T> x, int64_t D, int64_t first_block, uint8_t* finite) {
  wait_for_launch_before();
  const int64_t n = (first_block + blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (n >= x.count) return;
  bool all = true;
  for (int64_t d = threadIdx.x % 32; d < D; d += 32) {
    const auto value = widen(x.data[n * x.stride + d]);
    all &= value - value == 0;
  }
  const bool every = __ballot_sync(~0u, !all) == 0;
  if (threadIdx.x % 32 == 0) finite[n] = every;
}

}  // namespace itm::cuda
