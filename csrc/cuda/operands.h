#pragma once
// Operands of the CUDA launchers: pointers into device memory, and sizes. Nothing here needs torch
// or CUDA.

#include <cstdint>

namespace itm::cuda {

enum class Type { kFloat, kDouble, kHalf, kBFloat16 };
enum class Metric { kL1, kL2, kSquare };

// A batch of matrices with contiguous rows, padded to a multiple of 4 columns: D and the strides
// are multiples of 4 (columns of zeros change no result), and data is aligned to 16 bytes.
struct Matrix {
  const void* data;
  int64_t rows, stride, batch_stride;
};

// One value per row, in fp32 or fp64. The stride may be 0: all rows of the gradient of a sum share
// one value.
struct PerRow {
  const void* data;
  int64_t stride;
};

// Rows with any strides.
struct AnyRows {
  const void* data;
  int64_t rows, stride, column_stride;
};

}  // namespace itm::cuda
