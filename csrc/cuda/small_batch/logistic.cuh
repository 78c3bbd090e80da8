#pragma once
// log(1 + e^x) and its derivative.

#include "cuda/compat.cuh"

namespace itm::cuda {

template <typename C>
__device__ __forceinline__ C softplus(C x) {
  return (x <= 0 ? C(0) : x) + logarithm_of_one_plus(exponential(x > 0 ? -x : x));
}
template <typename C>
__device__ __forceinline__ C logistic(C x) {
  const C e = exponential(x > 0 ? -x : x);
  return (x > 0 ? C(1) : e) / (1 + e);
}

}  // namespace itm::cuda
