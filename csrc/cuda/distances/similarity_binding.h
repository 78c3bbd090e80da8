#pragma once
// Distances of padded tensors, and their gradient.

#include "cuda/device.h"
#include "cuda/distances/distance_gradient.h"
#include "cuda/distances/similarity.h"

namespace itm::cuda {

// Distances [B, N, M] of two padded batches of rows. How D is split decides the last bits of a
// distance, so blocks of one matrix pass the same planned_rows.
Tensor distances_of(const OnDevice& device, Metric metric, const Tensor& x, const Tensor& y,
                    int64_t planned_rows = 0);

// out[n] = sum over m of weight[n][m] sign(x[n] - y[m]), or of weight[n][m] (x[n] - y[m]), in fp32
// or better: [B, N, columns], without the padding beyond.
Tensor distance_gradient_of(const OnDevice& device, Metric metric, const Tensor& x, const Tensor& y,
                            const PairWeights& weights, int64_t columns);

inline PairWeights dense(const Tensor& weight) {  // [B, N, M]
  return {.data = weight.const_data_ptr(),
          .row_stride = weight.stride(1),
          .column_stride = weight.stride(2),
          .batch_stride = weight.stride(0)};
}

}  // namespace itm::cuda
