#pragma once
// Dispatches the types and metrics of operands.h to those that kernels are compiled for.

#include "cuda/distances/tile.cuh"
#include "cuda/operands.h"

namespace itm::cuda {

template <typename Work>
void with_type(Type type, Work&& work) {
  switch (type) {
    case Type::kFloat:
      return work(float{});
    case Type::kDouble:
      return work(double{});
    case Type::kHalf:
      return work(Half{});
    case Type::kBFloat16:
      return work(BFloat16{});
  }
}

// fp16 and bf16 are computed in fp32.
template <typename Work>
void with_wide_type(Type type, Work&& work) {
  if (type == Type::kDouble) return work(double{});
  work(float{});
}

template <typename Work>
void with_metric(Metric metric, Work&& work) {
  if (metric == Metric::kL1) return work(Magnitude{});
  work(Square{});
}

template <typename T>
Rows<T> rows_of(const Matrix& x) {
  return {static_cast<const T*>(x.data), x.rows, x.stride, x.batch_stride};
}

}  // namespace itm::cuda
