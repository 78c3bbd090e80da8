#pragma once
// Launchers of bounded sums over the pairs of one modality.

#include "cuda/operands.h"

namespace itm::cuda {

// finite[n] = whether all values of row n are finite.
void find_finite(Type type, const Matrix& x, int64_t D, uint8_t* finite, void* stream);

// A pair is inside the band if low < delta < high and its rows differ, in their ids too. repel sums
// high - delta instead of delta.
struct BandOptions {
  Metric metric;
  const void *low, *high;  // one value each, on the device, in fp32 or better
  bool repel;
  const int64_t* ids;     // [N] or null
  const uint8_t* finite;  // [N]
};

// Rows and columns of a tile.
int64_t band_side(Type type, int64_t N);

// Rows of tiles [first, first + count). A triangle covers the tiles on and above the diagonal, adds
// them to the sums of all rows and writes both bits of a pair; otherwise only the bits of the
// panel's own rows are written.
struct BandPanel {
  int64_t first = 0, count = 0;
  bool triangle = false;
  void* of_rows = nullptr;     // workspace [tiles, count * side] in fp32 or better; null: no sums
  void* of_columns = nullptr;  // workspace [count, N]
  double* total = nullptr;     // [N], the sums so far
  void* out = nullptr;         // [N], the same in fp32 or fp64
  uint32_t* mask = nullptr;    // from the panel's first row on, or all rows of a triangle; or null
  int64_t words = 0;           // in a row of the mask
};
void band(Type type, const BandOptions& options, const Matrix& x, int64_t D, const BandPanel& panel,
          void* stream);

// The same for one type. Each type is compiled in its own file: together they take longer than all
// other files.
template <typename T>
void band_of(const BandOptions& options, const Matrix& x, int64_t D, int64_t side,
             const BandPanel& panel, void* stream);

}  // namespace itm::cuda
