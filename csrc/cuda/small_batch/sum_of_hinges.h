#pragma once
// Launchers of the sum of hinges.

#include "cuda/small_batch/small_batch.h"

namespace itm::cuda {

// sum_of_hinges_forward: loss [M]; kept [N, M] gets the scores, unless it is null.
void sum_of_hinges(Type type, const ScoreParts& scores, const Pairing& pairing, double margin,
                   void* loss, void* kept, void* stream);
void sum_of_hinges_gradient(Type type, const PerRow& grad, const ScoreParts& scores,
                            const Pairing& pairing, double margin, const Workspace& work,
                            const SideGradients& to, void* stream);

}  // namespace itm::cuda
