#pragma once
// The launchers of bounded sums over one modality whose scores are stored: cosines and l2 distances
// of small batches. Numbers are in fp32, or fp64 for fp64.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// Pairs inside: low < key < high with key = 1 - score for unit rows, else the score. N = M.
struct StoredBand {
  ScoreParts scores;
  bool unit, repel;         // repel sums high - key
  bool propagate_infinite;  // a row's own score shows what lies outside every band
  double low, high;
  const int64_t* ids;                           // [N] or null
  void *row, *low_of_row, *high_of_row, *norm;  // [N]: sums, and both bounds and 1 again
  uint32_t* mask;                               // [N, words], or null
  int64_t words;
};
void stored_band(Type type, const StoredBand& band, void* stream);

// out[n] = the sum over pairs inside of sign (grad[n] + grad[m]) times y[m]; with distances [N, N],
// times (y[n] - y[m]) / distance, 0 at 0. Where shown [N], sums of rows, is not finite, out is NaN.
// y in fours, out [N, columns] in its type; with distances both are in fp32 or fp64.
struct StoredBandGradient {
  const uint32_t* mask;
  int64_t words;
  PerRow grad;
  double sign;
  Matrix y;
  const void *distance, *row_sum;  // or null
  void* out;
};
void stored_band_gradient(Type type, const StoredBandGradient& in, int64_t columns, void* stream);

}  // namespace itm::cuda
