#pragma once
// The launchers of the CUDA kernels: raw pointers on the device, sizes, a stream. Neither torch nor
// CUDA is needed to read this.

#include <cstdint>

namespace itm::cuda {

enum class Type { kFloat, kDouble, kHalf, kBFloat16 };
enum class Metric { kL1, kL2, kSquare };

// Rows of a batch of matrices, without gaps within a row, in fours: D and the strides are multiples
// of 4 (more columns of zeros change nothing), data is aligned to 16 bytes.
struct Matrix {
  const void* data;
  int64_t rows, stride, batch_stride;
};

// A number for every row in fp32 or fp64. The stride may be 0: the gradient of a sum is one number.
struct PerRow {
  const void* data;
  int64_t stride;
};

// Rows with any strides.
struct AnyRows {
  const void* data;
  int64_t rows, stride, column_stride;
};

// How many parts D is shared out into, so that few pairs keep a GPU busy: a rule of sizes alone.
// The same GPU and any other add in the same order.
struct DistancePlan {
  bool small;
  int64_t parts, depth;
};
DistancePlan plan_distances(int64_t batch, int64_t N, int64_t M, int64_t D);
// The same for so many tiles of 32 x 32 pairs.
DistancePlan share_depth(int64_t tiles, int64_t D);

// out [batch, N, M] in the type of the rows; partial [parts, batch, N, M] in fp32 or fp64, if there
// are several parts.
void distances(Type type, Metric metric, const Matrix& x, const Matrix& y, int64_t batch, int64_t D,
               const DistancePlan& plan, void* out, void* partial, void* stream);

// The weights of pairs of rows: numbers with strides, or share[n] + share[m] where bit m % 32 of
// word m / 32 of row n is set.
struct Weights {
  const void* data = nullptr;
  int64_t row_stride = 0, column_stride = 0, batch_stride = 0;  // of words, for bits
  const uint32_t* bits = nullptr;
  const void *share = nullptr, *shares = nullptr;  // of the rows of x, of y
};

// out[n][d] = the sum over m of weight[n][m] times sign(x[n][d] - y[m][d]), or, for kSquare, times
// x[n][d] - y[m][d]; out [batch, x.rows, D], shares and out in fp32, or fp64 for fp64.
void pull(Type type, Metric metric, const Matrix& x, const Matrix& y, const Weights& weights,
          int64_t batch, int64_t D, void* out, void* stream);

// finite[n] = whether every number of row n is finite.
void find_finite(Type type, const Matrix& x, int64_t D, uint8_t* finite, void* stream);

// What is inside: low < delta < high, not the same row, nor rows of the same id. repel sums high -
// delta instead of delta.
struct BandOptions {
  Metric metric;
  const void *low, *high;  // one number each, on the device, in fp32 or better
  bool repel;
  const int64_t* ids;     // [N] or null
  const uint8_t* finite;  // [N]
};

// Rows and columns of the tiles that bands are summed by.
int64_t band_side(Type type, int64_t N);

// Rows of tiles [first, first + count). As a triangle they add what is on and above the diagonal to
// the sums of all rows, and write both of a pair's bits; else they write the bits of their own
// rows.
struct BandPanel {
  int64_t first = 0, count = 0;
  bool triangle = false;
  void* of_rows = nullptr;     // room for [tiles, count * side] in fp32 or better, or null: no sums
  void* of_columns = nullptr;  // room for [count, N]
  double* total = nullptr;     // [N], the sums so far
  void* out = nullptr;         // [N], the same in fp32 or fp64
  uint32_t* mask =
      nullptr;        // from the first row of the panel on, or of all rows for a triangle; or null
  int64_t words = 0;  // in a row of the mask
};
void band(Type type, const BandOptions& options, const Matrix& x, int64_t D, const BandPanel& panel,
          void* stream);

// k-means over rows of x, for several problems of their own members and centroids. What there is
// room for is in fp32, or fp64 for fp64.
struct Clustering {
  int64_t problems, clusters, iterations;
  const void* product;    // [rows, rows] x.x
  const bool* member;     // [problems, rows] or null
  void* centroids;        // [problems, clusters, D]: the start, and the result
  int64_t* assignment;    // [problems, rows]
  void* score;            // room for [problems, clusters, rows]
  void* half_square;      // room for [problems, clusters]
  int32_t *order, *span;  // room for [2, problems, rows], [2, problems, clusters, 2]
};
void kmeans(Type type, const Matrix& x, int64_t D, const Clustering& to, void* stream);

}  // namespace itm::cuda
