#pragma once
// Launchers of the sigmoid loss as one operator.

#include "cuda/small_batch/contrastive.h"

namespace itm::cuda {

void sigmoid_total(Type type, const CosineParts& scores, const Pairing& pairing,
                   const Scalar& scale, const Scalar& bias, const ContrastiveResult& to,
                   void* stream);
void sigmoid_total_gradient(Type type, const Pairing& pairing, const Scalar& scale,
                            const Scalar& bias, const ContrastiveGradient& gradient, void* stream);

}  // namespace itm::cuda
