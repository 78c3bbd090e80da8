#pragma once
// Launchers of bounded sums over one modality with stored scores: cosines and l2 distances of small
// batches. Values are in fp32, or fp64 for fp64.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// A pair is inside if low < key < high, with key = 1 - score for unit rows, else the score. N = M.
struct StoredBand {
  ScoreParts scores;
  bool unit, repel;         // repel sums high - key
  bool propagate_infinite;  // add 0 * a row's own score: infinite rows are outside every band
  double low, high;
  const int64_t* ids;                           // [N] or null
  void *row, *low_of_row, *high_of_row, *norm;  // [N]: sums; low, high and 1 for every row
  uint32_t* mask;                               // [N, words], or null
  int64_t words;
};
void stored_band(Type type, const StoredBand& band, void* stream);

// out[n] = sum over pairs inside of sign (grad[n] + grad[m]) y[m]; with distances [N, N], of sign
// (grad[n] + grad[m]) (y[n] - y[m]) / distance, or 0 at distance 0. out is NaN where row_sum [N] is
// not finite. y is padded, out [N, columns] has its type; with distances both are in fp32 or fp64.
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
