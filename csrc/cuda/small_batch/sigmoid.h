#pragma once
// Launchers of the sigmoid loss.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// sigmoid_forward: loss [M]; scale and bias are one value each, on the device.
void sigmoid(Type type, const ScoreParts& scores, const Pairing& pairing, const void* scale,
             const void* bias, void* loss, void* kept, void* stream);
void sigmoid_gradient(Type type, const PerRow& grad, const ScoreParts& scores,
                      const Pairing& pairing, const void* scale, const void* bias,
                      const Workspace& work, const SideGradients& to, void* grad_scale,
                      void* grad_bias, void* stream);

}  // namespace itm::cuda
