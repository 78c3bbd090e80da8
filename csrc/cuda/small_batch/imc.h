#pragma once
// The launchers of the max of hinges with a band over the cosines of both sides, as one operator
// for a small batch. Numbers are in fp32, or fp64 for fp64.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// The band of one side: pairs with low < score < high and different ids, and the mask of those.
struct ImcBand {
  ScoreParts scores;  // of its rows with one another
  const int64_t* ids;
  uint32_t* mask;  // [rows, words]; the bit of a row with itself: its sum is not finite
  int64_t words;
  double weight;  // of a row's sum in the total
};

struct Imc {
  ScoreParts scores;  // [parts, N, M]
  Pairing pairing;
  ImcBand image, text;
  double margin, low, high;
  // As max_of_hinges has them, [M]; of every image, [N], the hardest text, and how many of the
  // image's pairs violate the margin by it.
  int64_t *text_index, *image_index;
  int32_t* hardest_text;
  void* violations;
  void* values;  // room for [M + N + M]
  Total total;
};
void imc(Type type, const Imc& in, void* stream);

// The gradients of all rows, from what `imc` left and the gradient of the total.
void imc_gradient(Type type, const Imc& in, const void* grad, const SideGradients& to,
                  void* stream);

}  // namespace itm::cuda
