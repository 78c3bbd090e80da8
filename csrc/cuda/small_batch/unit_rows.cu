// Launches unit rows and their gradient.

#include "cuda/dispatch.cuh"
#include "cuda/launch.h"
#include "cuda/small_batch/unit_rows.cuh"

namespace itm::cuda {

void unit_rows(Type type, const AnyRows& x, int64_t D, void* unit, void* norm, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const RowSplit split(x.rows, D);
    in_launches(split.blocks(), [&](int64_t first, int64_t count) {
      launch(unit_rows_kernel<T>, count, kRowThreads, kRowWarps * sizeof(Wide<T>), stream, x, split,
             first, static_cast<Wide<T>*>(unit), static_cast<Wide<T>*>(norm));
    });
  });
}

void unit_rows_gradient(Type type, const AnyRows& grad, int64_t D, const void* unit,
                        const void* norm, void* out, void* stream) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using C = Wide<T>;
    const RowSplit split(grad.rows, D);
    in_launches(split.blocks(), [&](int64_t first, int64_t count) {
      launch(unit_rows_gradient_kernel<T>, count, kRowThreads, kRowWarps * sizeof(C), stream, grad,
             split, first, static_cast<const C*>(unit), static_cast<const C*>(norm),
             static_cast<T*>(out));
    });
  });
}

}  // namespace itm::cuda
