#pragma once
// Bounded sums of a small batch, for intra_modal. Cosines take three launches forward and three
// backward, one of them the dot products of unit rows; l2 takes two each, and one more if distances
// are summed in parts.

#include <ATen/ops/empty_like.h>

#include "cuda/distances/similarity_binding.h"
#include "cuda/small_batch/small_batch_binding.h"
#include "cuda/small_batch/stored_band.h"
#include "cuda/small_batch/unit_rows.h"

namespace itm::cuda {

// Padded rows in fp32 or better, normalised if cosines are compared.
struct StoredRows {
  Tensor rows, norm;  // [1, N, D], [N]

  StoredRows(const OnDevice& device, const Tensor& x, bool unit) {
    if (!unit) {
      rows = pad_to_four(wide(x).unsqueeze(0));
      return;
    }
    const Tensor from = pad_to_four(x.unsqueeze(0));
    rows = at::empty(from.sizes(), from.options().dtype(wide_type(x)));
    norm = at::empty({x.size(0)}, rows.options());
    unit_rows(type_of(x), any_rows_of(from[0]), from.size(2), rows.mutable_data_ptr(),
              norm.mutable_data_ptr(), device.stream());
    device.check_launch();
  }
};

// Writes sums, bounds and, if it has rows, the mask of pairs with low < key < high.
inline void stored_sums(const OnDevice& device, const Tensor& x, const OptionalTensor& ids,
                        bool product, bool unit, bool repel, double low, double high,
                        const Tensor& row, const Tensor& low_of_row, const Tensor& high_of_row,
                        const Tensor& norm, const Tensor& mask) {
  const int64_t N = x.size(0);
  const StoredRows in(device, x, unit);
  Tensor scores;
  StoredBand band{.scores = {nullptr, 1, N, N},
                  .unit = unit,
                  .repel = repel,
                  .propagate_infinite = product && !unit,
                  .low = low,
                  .high = high,
                  .ids = ids_or_null(ids),
                  .row = row.mutable_data_ptr(),
                  .low_of_row = low_of_row.mutable_data_ptr(),
                  .high_of_row = high_of_row.mutable_data_ptr(),
                  .norm = norm.mutable_data_ptr(),
                  .mask = nullptr,
                  .words = mask.size(1)};
  if (mask.size(0)) band.mask = reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<int32_t>());
  if (product) {
    const StoredScores stored(device, in.rows[0], in.rows[0]);
    scores = stored.parts;
    band.scores = stored.from;
  } else {
    scores = distances_of(device, Metric::kL2, in.rows, in.rows);
    band.scores.data = scores.const_data_ptr();
  }
  stored_band(type_of(in.rows), band, device.stream());
  device.check_launch();
}

// The gradient [N, D] of these sums, from the mask, in the type of x or wider.
inline Tensor stored_gradient(const OnDevice& device, const Tensor& x, const Tensor& grad,
                              const Tensor& row, const Tensor& mask, bool product, bool unit,
                              bool repel) {
  Tensor rows, distance;
  std::optional<StoredRows> units;
  if (unit)
    rows = units.emplace(device, x, true).rows;
  else
    rows = pad_to_four((product ? x : wide(x)).unsqueeze(0));
  if (!product) distance = distances_of(device, Metric::kL2, rows, rows);
  // Unit rows keep their padding for the gradient of the normalisation.
  const int64_t columns = unit ? rows.size(2) : x.size(1);
  const Tensor out = at::empty({x.size(0), columns}, rows.options());
  const RowGradient numbers(grad, x);
  const Tensor bits = mask.contiguous(), sums = row.contiguous();
  stored_band_gradient(
      type_of(rows),
      {.mask = reinterpret_cast<const uint32_t*>(bits.const_data_ptr<int32_t>()),
       .words = bits.size(1),
       .grad = numbers.at(),
       .sign = repel != unit ? -1.0 : 1.0,  // a cosine's key decreases with its dot product
       .y = matrix_of(rows),
       .distance = distance.defined() ? distance.const_data_ptr() : nullptr,
       // An infinite row is outside every band, and its sum is NaN.
       .row_sum = product && !unit ? sums.const_data_ptr() : nullptr,
       .out = out.mutable_data_ptr()},
      columns, device.stream());
  device.check_launch();
  if (!unit) return out;
  const Tensor of_x = at::empty(out.sizes(), x.options());
  unit_rows_gradient(type_of(x), any_rows_of(out), columns, rows.const_data_ptr(),
                     units->norm.const_data_ptr(), of_x.mutable_data_ptr(), device.stream());
  device.check_launch();
  return of_x.narrow(1, 0, x.size(1)).contiguous();
}

}  // namespace itm::cuda
