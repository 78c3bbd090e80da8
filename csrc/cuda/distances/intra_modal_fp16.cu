// Bounded sums of rows in fp16.

#include "cuda/distances/intra_modal.inl"

namespace itm::cuda {
template void band_of<Half>(const BandOptions&, const Matrix&, int64_t, int64_t, const BandPanel&,
                            void*);
}  // namespace itm::cuda
