#pragma once
// Optional int64 tensors: the ids of rows, and the positive row of each column.

#include <ATen/core/Tensor.h>

#include <optional>

namespace itm {

using OptionalTensor = std::optional<at::Tensor>;

inline const int64_t* ids_or_null(const OptionalTensor& ids) {
  return ids.has_value() ? ids->const_data_ptr<int64_t>() : nullptr;
}

}  // namespace itm
