// Bounded sums over the pairs of one modality: a block of rows against all rows at a time, because
// norms and ranks need whole rows; nothing of a block is kept.

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <cmath>
#include <string_view>

#include "binding/pairs.h"
#include "binding/rows.h"

namespace itm {
namespace {

constexpr int64_t kKeysAtOnce = 8 << 20;  // 32 MiB of fp32

// How a mode and a metric read "delta", and the blocks of it.
struct Keys {
  bool product, unit, official, repel, l1, l2;
  Tensor x;  // rows in fp32 or better
  std::optional<UnitRows> directions;

  Keys(const Tensor& rows, std::string_view metric, std::string_view mode)
      : product(metric == "cosine"),
        unit(product && mode != "official"),
        official(mode == "official"),
        repel(mode == "repel"),
        l1(metric == "l1"),
        l2(metric == "l2"),
        x(wide(rows)) {
    if (unit) directions.emplace(x);
  }

  bool relative() const { return official && !product; }
  const Tensor& compared() const { return unit ? directions->rows : x; }

  // Calls visit(block) for rows [first_row, + rows) against all rows, in increasing order.
  template <typename T, typename Visit>
  void for_each_block(int64_t last, Visit&& visit) const {
    const int64_t N = x.size(0);
    const int64_t most = std::clamp<int64_t>(kKeysAtOnce / N, 1, kTileRows * at::get_num_threads());
    for (int64_t i = 0; i < last; i += most) {
      const int64_t rows = std::min(most, last - i);
      Tensor keys = at::empty({rows, N}, x.options());
      const Tensor left = compared().narrow(0, i, rows);
      if (product) {
        at::addmm_out(keys, keys, left, compared().t(), /*beta=*/0, unit ? -1 : 1);
        if (unit) keys.add_(1);
      } else {
        distances<T>(left, x, !l1, keys);
        if (l2) keys.sqrt_();
      }
      visit(Tile<T>{i, rows, 0, N, keys.template mutable_data_ptr<T>()}, keys);
    }
  }
};

// The value at a rank of a row, NaN last; beyond the row there is no bound.
template <typename T>
T at_rank(std::vector<T> row, int64_t rank) {
  if (rank >= static_cast<int64_t>(row.size())) return std::numeric_limits<T>::infinity();
  const auto less = [](T a, T b) { return a < b || (a == a && b != b); };
  std::nth_element(row.begin(), row.begin() + rank, row.end(), less);
  return row[rank];
}

// Divides every row of a block by its Euclidean norm, which it notes.
template <typename T>
void divide_by_norm(const Tile<T>& t, T* norm) {
  at::parallel_for(0, t.rows, grain(2 * t.columns), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      T* row = t.row(r);
      double square = 0;
      for (int64_t c = 0; c < t.columns; ++c) square += static_cast<double>(row[c]) * row[c];
      const T length = std::max(static_cast<T>(std::sqrt(square)), T(UnitRows::kSmallest));
      norm[t.first_row + r] = square == square ? length : static_cast<T>(square);
      for (int64_t c = 0; c < t.columns; ++c) row[c] /= norm[t.first_row + r];
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> intra_modal_forward(const Tensor& x,
                                                               const OptionalTensor& ids,
                                                               std::string_view metric,
                                                               std::string_view mode, double lower,
                                                               double upper, bool per_row) {
  const Keys keys(x, metric, mode);
  const int64_t N = x.size(0);
  const SameId same(ids, ids);
  const bool band_of_cosine = keys.official && keys.product;
  Tensor row = at::empty({N}, keys.x.options());
  Tensor low = at::full({N}, band_of_cosine ? upper : lower, keys.x.options());
  Tensor high = at::full({N}, band_of_cosine ? 1 - lower : upper, keys.x.options());
  Tensor norm = at::ones({N}, keys.x.options());
  AT_DISPATCH_FLOATING_TYPES(keys.x.scalar_type(), "intra_modal_forward", [&] {
    const auto& loop = cpu::loops<scalar_t>(kernels());
    auto *out = row.mutable_data_ptr<scalar_t>(), *lo = low.mutable_data_ptr<scalar_t>();
    auto *hi = high.mutable_data_ptr<scalar_t>(), *r_norm = norm.mutable_data_ptr<scalar_t>();
    // Round half to even, as Python's round().
    const auto rank = [&](double share) { return std::llrint(share * static_cast<double>(N)); };
    const auto thresholds = [&](const scalar_t* relative, int64_t n) {
      const std::vector<scalar_t> copy(relative, relative + N);
      lo[n] = at_rank(copy, rank(lower));
      hi[n] = at_rank(copy, rank(upper));
    };
    if (keys.relative() && !per_row)
      keys.for_each_block<scalar_t>(1, [&](const Tile<scalar_t>& t, const Tensor&) {
        divide_by_norm(t, r_norm);
        thresholds(t.row(0), 0);
        low.fill_(low[0]);
        high.fill_(high[0]);
      });
    keys.for_each_block<scalar_t>(N, [&](const Tile<scalar_t>& t, const Tensor&) {
      if (keys.relative()) divide_by_norm(t, r_norm);
      at::parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) {
          const int64_t n = t.first_row + r;
          scalar_t* key = t.row(r);
          if (keys.relative() && per_row) thresholds(key, n);
          const scalar_t own = band_of_cosine ? 0 * key[n] : scalar_t(0);
          same.for_each_in_row(t, r, [&](int64_t c) {
            if (key[c] == key[c]) key[c] = -std::numeric_limits<scalar_t>::infinity();
          });
          const auto sum = keys.repel ? loop.repel_sum : loop.band_sum;
          out[n] = sum(key, N, lo[n], hi[n]) + own;
        }
      });
    });
  });
  return {row, low, high, norm};
}

Tensor intra_modal_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& ids,
                            const Tensor& row, const Tensor& low, const Tensor& high,
                            const Tensor& norm, std::string_view metric, std::string_view mode) {
  const Keys keys(x, metric, mode);
  const int64_t N = x.size(0);
  const SameId same(ids, ids);
  const Tensor& rows = keys.compared();
  Tensor result = at::zeros_like(rows);
  AT_DISPATCH_FLOATING_TYPES(keys.x.scalar_type(), "intra_modal_backward", [&] {
    const auto& loop = cpu::loops<scalar_t>(kernels());
    // d(sum of D / |D|): a pair inside pulls on itself, and on every distance through the norm.
    const Tensor share = grad.to(keys.x.scalar_type()).div(norm).mul_(keys.repel ? -1 : 1);
    const Tensor slope = keys.relative() ? share.mul(row).neg_() : at::zeros_like(share);
    const auto of = [](const Tensor& t) { return t.const_data_ptr<scalar_t>(); };
    const cpu::Bands<scalar_t> bands{of(low), of(high), of(norm), of(share), of(slope)};
    keys.for_each_block<scalar_t>(N, [&](const Tile<scalar_t>& t, const Tensor& W) {
      Tensor distance;
      if (keys.l2) distance = W.clone();
      at::parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
        std::vector<std::pair<int64_t, scalar_t>> excluded;  // same id: no pair, but in the norm
        for (int64_t r = r0; r < r1; ++r) {
          const int64_t n = t.first_row + r;
          excluded.clear();
          same.for_each_in_row(t, r, [&](int64_t c) { excluded.emplace_back(c, t.row(r)[c]); });
          loop.band_weights(t.row(r), N, n, bands);
          for (const auto& [c, key] : excluded)
            t.row(r)[c] =
                bands.slope[n] * key / bands.norm[n] + bands.slope[c] * key / bands.norm[c];
        }
      });
      // W holds both places where a pair appears, so a block's rows get all of their gradient here.
      Tensor own = result.narrow(0, t.first_row, t.rows);
      if (keys.product) {
        at::addmm_out(own, own, W, rows, /*beta=*/0, keys.unit ? -1 : 1);  // delta = 1 - cos
        return;
      }
      // l2: sign(x - y) becomes (x - y) / D, 0 at D = 0; sqeuclidean: 2 (x - y).
      if (keys.l2)
        W.div_(distance).masked_fill_(distance.eq(0), 0);
      else if (!keys.l1)
        W.mul_(2);
      add_all<scalar_t>(W, keys.x.narrow(0, t.first_row, t.rows), keys.x, keys.l1, own);
    });
  });
  return (keys.unit ? keys.directions->gradient(result) : result).to(x.scalar_type());
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("intra_modal_forward", intra_modal_forward);
  m.impl("intra_modal_backward", intra_modal_backward);
}

}  // namespace
}  // namespace itm
