#pragma once
// The launchers of contrastive losses of a small batch as one operator: a fold that ends with the
// reduced loss, and a gradient that reaches the raw rows.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// Products of rows in parts, and what makes cosines of them: the squared lengths of the rows in as
// many parts, [parts, N] and [parts, M]; null for scores that are the products.
struct CosineParts {
  ScoreParts products;
  const void *x_squares = nullptr, *y_squares = nullptr;
};

// A number that is on the device, in fp32 or fp64, or known when a kernel is launched.
struct Given {
  const void* data = nullptr;
  double value = 0;
};

// What a fold leaves, in fp32 or fp64: the loss, weight times the sum over all pairs, the gradient
// of its scale (and bias), [1] each; the scores for a backward pass, [N, M], or null. The ticket is
// 0 before the launch.
struct ContrastOut {
  double weight;
  unsigned* ticket;
  void *total, *of_scale, *of_bias;
  void* scores;
  void* anchors;     // info_nce: [N + M, 4]; sigmoid: [N + M], 1 / length
  void* of_anchors;  // room for [2 or 3, max(N, M)]
};

// What a gradient is made of: the gradient of the loss, one number, and what the fold left.
struct ContrastGradient {
  const void *grad, *of_scale, *of_bias, *scores, *anchors;
  double weight;
  bool cosine;
  WeightedRows rows;
  void *to_scale, *to_bias;
};

// The cross-entropies of both directions, added.
void info_nce(Type type, const CosineParts& scores, const Pairing& pairing, const Given& scale,
              const ContrastOut& to, void* stream);
void info_nce_gradient(Type type, const Pairing& pairing, const Given& scale,
                       const ContrastGradient& gradient, void* stream);

void sigmoid_total(Type type, const CosineParts& scores, const Pairing& pairing, const Given& scale,
                   const Given& bias, const ContrastOut& to, void* stream);
void sigmoid_total_gradient(Type type, const Pairing& pairing, const Given& scale,
                            const Given& bias, const ContrastGradient& gradient, void* stream);

}  // namespace itm::cuda
