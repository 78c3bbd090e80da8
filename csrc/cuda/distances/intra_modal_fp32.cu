// Bounded sums of fp32 rows.

#include "cuda/distances/intra_modal.inl"

namespace itm::cuda {
template void band_of<float>(const BandOptions&, const Matrix&, int64_t, int64_t, const BandPanel&,
                             void*);
}  // namespace itm::cuda
