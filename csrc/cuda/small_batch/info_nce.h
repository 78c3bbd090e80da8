#pragma once
// Launchers of InfoNCE as one operator.

#include "cuda/small_batch/contrastive.h"

namespace itm::cuda {

// The sum of the cross-entropies of both directions.
void info_nce(Type type, const CosineParts& scores, const Pairing& pairing, const Scalar& scale,
              const ContrastiveResult& to, void* stream);
void info_nce_gradient(Type type, const Pairing& pairing, const Scalar& scale,
                       const ContrastiveGradient& gradient, void* stream);

}  // namespace itm::cuda
