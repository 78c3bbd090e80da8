#pragma once
// Launchers of the max of hinges with a band over the cosines of both sides, as one operator for a
// small batch. Values are in fp32, or fp64 for fp64.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// The band of one side: pairs with low < score < high and different ids, and their mask.
struct ImcBand {
  ScoreParts scores;  // of all pairs of its own rows
  const int64_t* ids;
  uint32_t* mask;  // [rows, words]; a row's own bit: its sum is not finite
  int64_t words;
  double weight;  // of a row's sum in the total
};

struct Imc {
  ScoreParts scores;  // [parts, N, M]
  Pairing pairing;
  ImcBand image, text;
  double margin, low, high;
  // As for max_of_hinges, [M]; for every image, [N], its hardest text and the number of its pairs
  // that violate the margin because of that text.
  int64_t *text_index, *image_index;
  int32_t* hardest_text;
  void* violations;
  void* values;  // workspace [M + N + M]
  Total total;
};
void imc(Type type, const Imc& in, void* stream);

// The gradients of all rows, from the results of `imc` and the gradient of the total.
void imc_gradient(Type type, const Imc& in, const void* grad, const SideGradients& to,
                  void* stream);

}  // namespace itm::cuda
