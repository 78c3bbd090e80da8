#pragma once
// Operands of contrastive losses of a small batch as one operator: a reduction that ends with the
// reduced loss, and the gradient of the raw rows.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// Dot products of rows in parts, and the squared norms of the rows in as many parts, [parts, N] and
// [parts, M], which turn them into cosines; null if the scores are the dot products.
struct CosineParts {
  ScoreParts products;
  const void *x_squares = nullptr, *y_squares = nullptr;
};

// A scalar on the device, in fp32 or fp64, or one that is passed by value.
struct Scalar {
  const void* data = nullptr;
  double value = 0;
};

// Results of a forward pass, in fp32 or fp64: the loss, weight times the sum over all pairs, and
// the gradients of its scale and bias, [1] each; the scores for a backward pass, [N, M], or null.
// The ticket is 0 before the launch.
struct ContrastiveResult {
  double weight;
  unsigned* ticket;
  void *total, *of_scale, *of_bias;
  void* scores;
  void* anchors;     // info_nce: [N + M, 4]; sigmoid: [N + M], 1 / norm
  void* of_anchors;  // workspace [2 or 3, max(N, M)]
};

// Operands of a backward pass: the gradient of the loss, one value, and the forward pass's results.
struct ContrastiveGradient {
  const void *grad, *of_scale, *of_bias, *scores, *anchors;
  double weight;
  bool cosine;
  SideGradients rows;
  void *to_scale, *to_bias;
};

}  // namespace itm::cuda
