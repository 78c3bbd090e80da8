#pragma once
// Bounded sums over rows of one type. Each type is compiled in a file of its own: together they
// take longer than all other files.

#include "cuda/launch.h"

namespace itm::cuda {

template <typename T>
void band_of(const BandOptions& options, const Matrix& x, int64_t D, int64_t side,
             const BandPanel& panel, void* stream);

}  // namespace itm::cuda
