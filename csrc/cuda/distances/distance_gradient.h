#pragma once
// The launcher of the gradient of distances.

#include "cuda/operands.h"

namespace itm::cuda {

// The weights of all pairs of rows: dense values with strides, or row_weight[n] + column_weight[m]
// where bit m % 32 of word m / 32 of row n is set.
struct PairWeights {
  const void* data = nullptr;
  int64_t row_stride = 0, column_stride = 0, batch_stride = 0;  // in words, for bits
  const uint32_t* bits = nullptr;
  const void *row_weight = nullptr, *column_weight = nullptr;  // [N], [M]
};

// out[n][d] = sum over m of weight[n][m] sign(x[n][d] - y[m][d]), or, for kSquare, of
// weight[n][m] (x[n][d] - y[m][d]). out [batch, x.rows, D], row_weight and column_weight are in
// fp32, or fp64 for fp64.
void distance_gradient(Type type, Metric metric, const Matrix& x, const Matrix& y,
                       const PairWeights& weights, int64_t batch, int64_t D, void* out,
                       void* stream);

}  // namespace itm::cuda
