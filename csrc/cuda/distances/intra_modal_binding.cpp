// Bounded sums over the pairs of one modality, on CUDA. Distances with the same bounds for all rows
// are summed tile by tile, without storing their matrix; cosines and l2 distances of small batches
// are stored. Cosines of large batches use ATen's matmul, and official distances need whole rows:
// both are computed for blocks of rows against all others, no larger than the rows.

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sort.h>

#include <cmath>

#include "cuda/distances/intra_modal.h"
#include "cuda/distances/similarity_binding.h"
#include "cuda/small_batch/stored_band_binding.h"

namespace itm::cuda {
namespace {

// How a metric and a mode compare the rows of one modality.
struct Comparison {
  const bool product, unit, official, repel, l2;
  const Metric metric;
  const OnDevice& device;
  const Tensor x;  // [N, D]

  Comparison(const OnDevice& device, const Tensor& rows, std::string_view name,
             std::string_view mode)
      : product(name == "cosine"),
        unit(product && mode != "official"),
        official(mode == "official"),
        repel(mode == "repel"),
        l2(name == "l2"),
        metric(metric_of(name)),
        device(device),
        x(rows) {}

  bool relative() const { return official && !product; }
  // Small batches store their scores: a launch costs more than its arithmetic.
  bool stored() const { return (product || (l2 && !official)) && rows() <= kMostRows; }
  int64_t rows() const { return x.size(0); }

  // Rows per block, such that their distances to all rows take no more memory than x.
  int64_t rows_at_once() const { return std::max<int64_t>(1, x.size(1) / 128) * 128; }

  // The rows that are compared, in fp32 or better; unit vectors for products.
  Tensor compared() const { return unit ? UnitRows(wide(x)).rows : wide(x); }

  // The values that the mode bounds, for rows [first, + count) of `from` against all rows.
  Tensor keys(const Tensor& from, int64_t first, int64_t count) const {
    const Tensor block = from.narrow(0, first, count);
    if (product) {
      const Tensor scores = at::matmul(block, from.t());
      return unit ? scores.neg_().add_(1) : scores;
    }
    const Tensor all = pad_to_four(from.unsqueeze(0));
    return distances_of(device, metric, all.narrow(1, first, count), all, rows_at_once())[0];
  }
};

Tensor inside(const Tensor& key, const Tensor& low, const Tensor& high) {
  return key.le(low).logical_or_(key.ge(high)).logical_not_();
}

// Excluded pairs: equal ids, or a row with itself.
Tensor excluded(const OptionalTensor& ids, const Comparison& by, int64_t first, int64_t count) {
  const Tensor own =
      ids.has_value() ? *ids : at::arange(by.rows(), by.x.options().dtype(at::kLong));
  return own.narrow(0, first, count).unsqueeze(1).eq(own);
}

struct Bounds {
  Tensor low, high, norm;  // [N]
};

// The values at two ranks of every row, [rows, 1]. NaN ranks last; a rank beyond the row is
// infinite.
std::tuple<Tensor, Tensor> at_ranks(const Tensor& rows, double lower, double upper) {
  const int64_t N = rows.size(1);
  const Tensor ranked = at::constant_pad_nd(std::get<0>(at::sort(rows, 1)), {0, 1},
                                            std::numeric_limits<double>::infinity());
  const auto column = [&](double fraction) {
    // Round half to even, as Python's round().
    return ranked.narrow(1, std::min<int64_t>(std::llrint(fraction * static_cast<double>(N)), N),
                         1);
  };
  return {column(lower), column(upper)};
}

// Sums all rows, block by block; writes the bounds of official distances.
Tensor sums_of_blocks(const Comparison& by, const OptionalTensor& ids, Bounds& bounds, double lower,
                      double upper, bool per_row, Tensor& mask) {
  const Tensor from = by.compared();
  const int64_t N = by.rows();
  Tensor row = at::empty({N}, from.options()), low, high;
  for (int64_t first = 0; first < N; first += by.rows_at_once()) {
    const int64_t count = std::min(by.rows_at_once(), N - first);
    const auto own = [&](const Tensor& t) { return t.narrow(0, first, count); };
    Tensor key = by.keys(from, first, count);
    if (by.relative()) {
      // Rows of equal embeddings have norm 0; the floor avoids 0 / 0.
      own(bounds.norm).copy_(at::linalg_vector_norm(key, 2, at::IntArrayRef{1}).clamp_min_(1e-12));
      key.div_(own(bounds.norm).unsqueeze(1));
      if (per_row || first == 0)
        std::tie(low, high) = at_ranks(per_row ? key : key.narrow(0, 0, 1), lower, upper);
      own(bounds.low).copy_(low.squeeze(1).expand({count}));
      own(bounds.high).copy_(high.squeeze(1).expand({count}));
    }
    Tensor in = inside(key, own(bounds.low).unsqueeze(1), own(bounds.high).unsqueeze(1));
    in.logical_and_(excluded(ids, by, first, count).logical_not_().logical_or_(key.isnan()));
    const Tensor value = by.repel ? own(bounds.high).unsqueeze(1).sub(key) : key;
    own(row).copy_(value.masked_fill(in.logical_not(), 0).sum(1));
    if (by.product && by.official)  // shows infinite rows, which are outside every band
      own(row).add_(key.diagonal(first).mul(0));
    if (mask.size(0) == N) {
      const Tensor words =
          at::constant_pad_nd(in, {0, mask.size(1) * 32 - N}).view({count, mask.size(1), 32});
      const Tensor bit = at::arange(32, mask.options());
      own(mask).copy_(words.to(at::kInt).bitwise_left_shift(bit).sum(2, false, at::kInt));
    }
  }
  return row;
}

// The gradient of these sums: the saved bounds and norms reproduce each pair's weight in both rows.
Tensor gradient_of_blocks(const Comparison& by, const OptionalTensor& ids, const Bounds& bounds,
                          const Tensor& row, const Tensor& grad) {
  const Tensor from = by.compared(), all = pad_to_four(from.unsqueeze(0));
  const int64_t N = by.rows(), D = by.x.size(1);
  const Tensor row_grad = grad.to(from.scalar_type()).div(bounds.norm).mul_(by.repel ? -1 : 1);
  std::vector<Tensor> found;
  for (int64_t first = 0; first < N; first += by.rows_at_once()) {
    const int64_t count = std::min(by.rows_at_once(), N - first);
    const auto own = [&](const Tensor& t) { return t.narrow(0, first, count).unsqueeze(1); };
    const Tensor key = by.keys(from, first, count);
    const Tensor here = key.div(own(bounds.norm)), there = key.div(bounds.norm);
    Tensor weight = inside(here, own(bounds.low), own(bounds.high)).to(key.scalar_type());
    weight.mul_(own(row_grad));
    weight.add_(inside(there, bounds.low, bounds.high).to(key.scalar_type()).mul_(row_grad));
    weight.masked_fill_(excluded(ids, by, first, count), 0);
    if (by.relative()) {
      const Tensor slope = row_grad.mul(row);
      weight.sub_(here.mul(own(slope))).sub_(there.mul(slope));
    }
    if (by.product) {
      // An infinite row is outside every band but its sum is NaN, and so is its gradient.
      if (by.official) weight.diagonal(first).add_(row.narrow(0, first, count).mul(0));
      found.push_back(at::matmul(by.unit ? weight.neg_() : weight, from));
      continue;
    }
    // At distance 0 the gradient is 0, not 0 / 0.
    if (by.l2) weight.div_(key).masked_fill_(key.eq(0), 0);
    const Metric kind = by.metric == Metric::kL1 ? Metric::kL1 : Metric::kSquare;
    const Tensor part = distance_gradient_of(by.device, kind, all.narrow(1, first, count), all,
                                             dense(weight.unsqueeze(0)), D)[0];
    found.push_back(by.metric == Metric::kSquare ? part.mul(2) : part);
  }
  const Tensor result = at::cat(found);
  return by.unit ? UnitRows(wide(by.x)).gradient(result) : result;
}

// Padded rows, and the arguments that all band launches over them share.
struct Bands {
  const Tensor x, finite;  // [1, N, padded D], [N]
  const Type type;
  const int64_t N, D, side, tiles;
  BandOptions options;

  Bands(const Comparison& by, const OptionalTensor& ids, const Tensor& low, const Tensor& high)
      : x(pad_to_four(by.x.unsqueeze(0))),
        finite(at::empty({by.rows()}, by.x.options().dtype(at::kByte))),
        type(type_of(by.x)),
        N(by.rows()),
        D(x.size(2)),
        side(band_side(type, N)),
        tiles((N + side - 1) / side),
        options{by.metric, low.const_data_ptr(), high.const_data_ptr(),
                by.repel,  ids_or_null(ids),     finite.const_data_ptr<uint8_t>()} {
    find_finite(type, matrix_of(x), D, finite.mutable_data_ptr<uint8_t>(), by.device.stream());
    by.device.check_launch();
  }
};

// Sums all rows and, if it is kept, writes the mask. The partial sums of a panel of tiles take no
// more memory than the rows.
Tensor sums_of_tiles(const Comparison& by, const Bands& bands, Tensor& mask) {
  const int64_t most = std::clamp<int64_t>(bands.D / 2, 1, bands.tiles);
  const auto like = by.x.options().dtype(wide_type(by.x));
  const Tensor of_rows = at::empty({bands.tiles * most * bands.side}, like);
  const Tensor of_columns = at::empty({most * bands.N}, like);
  const Tensor total = at::zeros({bands.N}, like.dtype(at::kDouble));
  Tensor row = at::empty({bands.N}, like);
  auto* bits =
      mask.size(0) ? reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<int32_t>()) : nullptr;
  for (int64_t first = 0; first < bands.tiles; first += most) {
    band(bands.type, bands.options, matrix_of(bands.x), bands.D,
         {.first = first,
          .count = std::min(most, bands.tiles - first),
          .triangle = true,
          .of_rows = of_rows.mutable_data_ptr(),
          .of_columns = of_columns.mutable_data_ptr(),
          .total = total.mutable_data_ptr<double>(),
          .out = row.mutable_data_ptr(),
          .mask = bits,
          .words = mask.size(1)},
         by.device.stream());
    by.device.check_launch();
  }
  return row;
}

// The gradient from the bits of the pairs inside. Without a saved mask, bits are recomputed for as
// many rows at once as take no more memory than x.
Tensor gradient_of_bits(const Comparison& by, const Bands& bands, const Tensor& grad,
                        const Tensor& mask) {
  const int64_t words = (bands.N + 31) / 32;
  const bool kept = mask.size(0) == bands.N;
  const int64_t most =
      kept ? bands.tiles : std::clamp<int64_t>(32 * bands.D / bands.side, 1, bands.tiles);
  Tensor recomputed = at::empty({kept ? 0 : most * bands.side * words}, mask.options());
  const Tensor& from = kept ? mask : recomputed;
  const Tensor row_grad = grad.to(wide_type(by.x)).mul(by.repel ? -1 : 1).contiguous();
  const Metric kind = by.metric == Metric::kL1 ? Metric::kL1 : Metric::kSquare;
  std::vector<Tensor> found;
  for (int64_t first = 0; first < bands.tiles; first += most) {
    const int64_t row = first * bands.side, rows = std::min(most * bands.side, bands.N - row);
    const auto* bits = reinterpret_cast<const uint32_t*>(from.const_data_ptr<int32_t>());
    if (!kept) {
      band(bands.type, bands.options, matrix_of(bands.x), bands.D,
           {.first = first,
            .count = std::min(most, bands.tiles - first),
            .triangle = false,
            .mask = reinterpret_cast<uint32_t*>(recomputed.mutable_data_ptr<int32_t>()),
            .words = words},
           by.device.stream());
      by.device.check_launch();
    }
    const PairWeights weights{.row_stride = words,
                              .bits = bits,
                              .row_weight = row_grad.narrow(0, row, rows).const_data_ptr(),
                              .column_weight = row_grad.const_data_ptr()};
    found.push_back(distance_gradient_of(by.device, kind, bands.x.narrow(1, row, rows), bands.x,
                                         weights, by.x.size(1))[0]);
  }
  Tensor result = at::cat(found);
  return kind == Metric::kSquare ? result.mul_(2) : result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> intra_modal_forward(
    const Tensor& x, const OptionalTensor& ids, std::string_view metric, std::string_view mode,
    double lower, double upper, bool per_row, bool keep_mask) {
  const OnDevice device(x);
  const Comparison by(device, x, metric, mode);
  const OptionalTensor own = ids.has_value() ? OptionalTensor(ids->contiguous()) : ids;
  const int64_t N = x.size(0);
  const auto like = x.options().dtype(wide_type(x));
  Tensor mask = at::empty({keep_mask ? N : 0, keep_mask ? (N + 31) / 32 : 0}, like.dtype(at::kInt));
  const bool scores = by.official && by.product;  // similarities between upper and 1 - lower
  const double low = scores ? upper : lower, high = scores ? 1 - lower : upper;
  if (by.stored()) {
    const auto column = [&] { return at::empty({N}, like); };
    const Tensor row = column(), lows = column(), highs = column(), norm = column();
    stored_sums(device, x, own, by.product, by.unit, by.repel, low, high, row, lows, highs, norm,
                mask);
    return {row, lows, highs, norm, mask};
  }
  Bounds bounds{at::full({N}, low, like), at::full({N}, high, like), at::ones({N}, like)};
  const Tensor row = by.product || by.official
                         ? sums_of_blocks(by, own, bounds, lower, upper, per_row, mask)
                         : sums_of_tiles(by, Bands(by, own, bounds.low, bounds.high), mask);
  return {row, bounds.low, bounds.high, bounds.norm, mask};
}

Tensor intra_modal_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& ids,
                            const Tensor& row, const Tensor& low, const Tensor& high,
                            const Tensor& norm, const Tensor& mask, std::string_view metric,
                            std::string_view mode) {
  const OnDevice device(x);
  const Comparison by(device, x, metric, mode);
  if (by.stored() && mask.size(0))
    return stored_gradient(device, x, grad, row, mask, by.product, by.unit, by.repel)
        .to(x.scalar_type());
  // l2 divides by distances, which the bits do not hold.
  if (!by.product && !by.official && !by.l2) {
    const OptionalTensor own = ids.has_value() ? OptionalTensor(ids->contiguous()) : ids;
    return gradient_of_bits(by, Bands(by, own, low, high), grad, mask).to(x.scalar_type());
  }
  return gradient_of_blocks(by, ids, {low, high, norm}, row, grad).to(x.scalar_type());
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("intra_modal_forward", intra_modal_forward);
  m.impl("intra_modal_backward", intra_modal_backward);
}

}  // namespace
}  // namespace itm::cuda
