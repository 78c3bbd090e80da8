#pragma once
// The launchers of cross-entropies of pairs, in fp32 or fp64.

#include "cuda/launch.h"

namespace itm::cuda {

// Positives [M] among negatives [sides, K, M], all logarithms; negatives are relative to bases.
struct Softmaxes {
  const void *positive, *negatives, *bases;
  int64_t sides, K, M;
  double weight;
};

// loss [M] = weight times the sum over sides of -log softmax of the positive.
void cross_entropy(Type type, const Softmaxes& in, void* loss, void* stream);
void cross_entropy_gradient(Type type, const Softmaxes& in, const PerRow& grad, void* of_positive,
                            void* of_negatives, void* stream);

}  // namespace itm::cuda
