// Launches cross-entropies of pairs and their gradient.

#include "cuda/cross_entropy.cuh"
#include "cuda/dispatch.cuh"

namespace itm::cuda {

void cross_entropy(Type type, const Softmaxes& in, void* loss, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    in_launches(ceil_div(in.M, kPairThreads), [&](int64_t first, int64_t count) {
      launch(cross_entropy_kernel<C>, count, kPairThreads, 0, stream, in, first,
             static_cast<C*>(loss));
    });
  });
}

void cross_entropy_gradient(Type type, const Softmaxes& in, const PerRow& grad, void* of_positive,
                            void* of_negatives, void* stream) {
  with_wide_type(type, [&](auto zero) {
    using C = decltype(zero);
    in_launches(ceil_div(in.M, kPairThreads), [&](int64_t first, int64_t count) {
      launch(cross_entropy_gradient_kernel<C>, count, kPairThreads, 0, stream, in, grad, first,
             static_cast<C*>(of_positive), static_cast<C*>(of_negatives));
    });
  });
}

}  // namespace itm::cuda
