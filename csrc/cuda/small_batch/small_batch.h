#pragma once
// Operands of the launchers over all pairs of a small batch. Its scores fit into memory, and a loss
// costs its launches rather than its arithmetic.

#include "cuda/distances/similarity.h"

namespace itm::cuda {

// Rows of either side. Scores then take at most 8 MiB, and lists of pairs fit into shared memory.
constexpr int64_t kMostRows = 1024;

// The positive image of each text, and the ids whose equality excludes a pair from the negatives.
// All are null if pairs are the diagonal.
struct Pairing {
  const int64_t *positive, *image_ids, *text_ids;  // [M], [N], [M]
};

// The sum of the values of a reduction, times a weight, computed by its last block in a fixed
// order. The ticket is 0 before the launch; a null ticket means no total.
struct Total {
  double weight = 1;
  unsigned* ticket = nullptr;
  void* total = nullptr;  // in fp32 or fp64
};

// Workspace between the two launches of a backward pass, in fp32 or fp64.
struct Workspace {
  void* weights;               // [N, M]
  void *of_rows, *of_columns;  // [max(N, M)] each
};

// The rows of both sides, padded to a multiple of 4 columns, and their gradients [N, D] and [M, D]
// in the same type, without the padding.
struct SideGradients {
  Matrix x, y;
  int64_t D;
  void *to_x, *to_y;
};

}  // namespace itm::cuda
