// Bounded sums of bf16 rows.

#include "cuda/distances/intra_modal.inl"

namespace itm::cuda {
template void band_of<BFloat16>(const BandOptions&, const Matrix&, int64_t, int64_t,
                                const BandPanel&, void*);
}  // namespace itm::cuda
