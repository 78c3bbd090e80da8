// Launches unit rows and their gradient.

#include "cuda/dispatch.cuh"
#include "cuda/small_batch/unit_rows.cuh"

namespace itm::cuda {

void unit_rows(Type type, const AnyRows& x, int64_t D, void* unit, void* length, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const RowShare share(x.rows, D);
    in_launches(share.blocks(), [&](int64_t first, int64_t count) {
      launch(unit_kernel<T>, count, kRowThreads, kRowWarps * sizeof(Wide<T>), stream, x, share,
             first, static_cast<Wide<T>*>(unit), static_cast<Wide<T>*>(length));
    });
  });
}

void unit_rows_gradient(Type type, const AnyRows& grad, int64_t D, const void* unit,
                        const void* length, void* out, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const RowShare share(grad.rows, D);
    in_launches(share.blocks(), [&](int64_t first, int64_t count) {
      launch(unit_gradient_kernel<T>, count, kRowThreads, kRowWarps * sizeof(C), stream, grad,
             share, first, static_cast<const C*>(unit), static_cast<const C*>(length),
             static_cast<T*>(out));
    });
  });
}

}  // namespace itm::cuda
