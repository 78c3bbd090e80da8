// Bounded sums of distances relative to the norm of their row (the official mode). Norms and ranks
// need whole rows, so that a block of rows is compared with all rows at a time. The distance matrix
// of at most D rows is no larger than the rows themselves: then it is computed as a whole, each
// pair once.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu/intra_modal.h"

namespace itm::cpu {
namespace {

constexpr int64_t kDistancesAtOnce = 8 << 20;  // 32 MiB of fp32

// Returns the whole distance matrix, from the tiles on and above the diagonal.
template <typename T>
Tensor all_distances(const Keys& keys) {
  const int64_t N = keys.x.size(0);
  Tensor all = at::empty({N, N}, keys.x.options());
  keys.for_each_upper_tile<T>([&](const Tile<T>& t) {
    const Tensor tile = at::from_blob(t.data, {t.rows, t.columns}, keys.x.options());
    const auto block = [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      return all.narrow(0, row, rows).narrow(1, column, columns);
    };
    block(t.first_row, t.rows, t.first_column, t.columns).copy_(tile);
    block(t.first_column, t.columns, t.first_row, t.rows).copy_(tile.t());
  });
  return all;
}

// Calls visit(block) for the distances of a block of rows to all rows, in increasing order.
template <typename T, typename Visit>
void for_each_block(const Keys& keys, Visit&& visit) {
  const int64_t N = keys.x.size(0);
  if (N <= keys.x.size(1)) {
    const Tensor all = all_distances<T>(keys);
    return visit(Tile<T>{0, N, 0, N, all.mutable_data_ptr<T>()});
  }
  const int64_t most =
      std::clamp<int64_t>(kDistancesAtOnce / N, 1, kKeyRows * at::get_num_threads());
  for (int64_t i = 0; i < N; i += most) {
    const int64_t rows = std::min(most, N - i);
    Tensor block = at::empty({rows, N}, keys.x.options());
    distances<T>(keys.x.narrow(0, i, rows), keys.x, !keys.l1, block);
    if (keys.l2) block.sqrt_();
    visit(Tile<T>{i, rows, 0, N, block.template mutable_data_ptr<T>()});
  }
}

// Returns the value at a rank of a row, NaN sorted last, and infinity for a rank beyond the row.
template <typename T>
T at_rank(std::vector<T> row, int64_t rank) {
  if (rank >= static_cast<int64_t>(row.size())) return std::numeric_limits<T>::infinity();
  const auto less = [](T a, T b) { return a < b || (a == a && b != b); };
  std::nth_element(row.begin(), row.begin() + rank, row.end(), less);
  return row[rank];
}

// Divides every row of a block by its Euclidean norm and writes the norms.
template <typename T>
void divide_by_norm(const Tile<T>& t, T* norm) {
  parallel_for(0, t.rows, grain(2 * t.columns), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      T* row = t.row(r);
      double square = 0;
      for (int64_t c = 0; c < t.columns; ++c) square += static_cast<double>(row[c]) * row[c];
      const T root = std::max(static_cast<T>(std::sqrt(square)), T(UnitRows::kSmallest));
      norm[t.first_row + r] = square == square ? root : static_cast<T>(square);
      for (int64_t c = 0; c < t.columns; ++c) row[c] /= norm[t.first_row + r];
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> relative_sums(const Keys& keys,
                                                         const OptionalTensor& ids, double lower,
                                                         double upper, bool per_row) {
  const int64_t N = keys.x.size(0);
  const SameId same(ids, ids);
  const auto column = [&] { return at::empty({N}, keys.x.options()); };
  Tensor row = column(), low = column(), high = column(), norm = column();
  AT_DISPATCH_FLOATING_TYPES(keys.x.scalar_type(), "intra_modal_forward", [&] {
    const auto& loop = loops<scalar_t>();
    auto *out = row.mutable_data_ptr<scalar_t>(), *lo = low.mutable_data_ptr<scalar_t>();
    auto *hi = high.mutable_data_ptr<scalar_t>(), *norms = norm.mutable_data_ptr<scalar_t>();
    // Round half to even, as Python's round().
    const auto rank = [&](double part) { return std::llrint(part * static_cast<double>(N)); };
    const auto thresholds = [&](const scalar_t* relative, int64_t n) {
      const std::vector<scalar_t> copy(relative, relative + N);
      lo[n] = at_rank(copy, rank(lower));
      hi[n] = at_rank(copy, rank(upper));
    };
    for_each_block<scalar_t>(keys, [&](const Tile<scalar_t>& t) {
      divide_by_norm(t, norms);
      if (!per_row && t.first_row == 0) {
        thresholds(t.row(0), 0);
        low.fill_(low[0]);
        high.fill_(high[0]);
      }
      parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
        std::vector<uint32_t> words(kTileColumns / 32);  // bits of the pairs inside, unused
        for (int64_t r = r0; r < r1; ++r) {
          const int64_t n = t.first_row + r;
          scalar_t* key = t.row(r);
          if (per_row) thresholds(key, n);
          same.for_each_in_row(t, r, [&](int64_t c) {
            if (key[c] == key[c]) key[c] = -std::numeric_limits<scalar_t>::infinity();
          });
          double sum = 0;
          for (int64_t c = 0; c < N; c += kTileColumns)
            sum += loop.band_row(key + c, std::min(kTileColumns, N - c), {lo[n], hi[n], 0, 1},
                                 words.data());
          out[n] = static_cast<scalar_t>(sum);
        }
      });
    });
  });
  return {row, low, high, norm};
}

Tensor relative_gradient(const Keys& keys, const Tensor& grad, const OptionalTensor& ids,
                         const Tensor& row, const Tensor& low, const Tensor& high,
                         const Tensor& norm) {
  const int64_t N = keys.x.size(0);
  const SameId same(ids, ids);
  Tensor result = at::zeros_like(keys.x);
  AT_DISPATCH_FLOATING_TYPES(keys.x.scalar_type(), "intra_modal_backward", [&] {
    const auto& loop = loops<scalar_t>();
    // d(sum of D / |D|): a distance inside has a gradient of its own, and every distance one
    // through the norm.
    const Tensor inside = grad.to(keys.x.scalar_type()).div(norm);
    const Tensor slope = inside.mul(row).neg_();
    const auto of = [](const Tensor& t) { return t.const_data_ptr<scalar_t>(); };
    const simd::RowBands<scalar_t> bands{of(low), of(high), of(norm), of(inside), of(slope)};
    for_each_block<scalar_t>(keys, [&](const Tile<scalar_t>& t) {
      Tensor W = at::from_blob(t.data, {t.rows, t.columns}, keys.x.options()), distance;
      if (keys.l2) distance = W.clone();
      parallel_for(0, t.rows, grain(8 * t.columns), [&](int64_t r0, int64_t r1) {
        std::vector<std::pair<int64_t, scalar_t>> excluded;  // share an id: only part of the norm
        for (int64_t r = r0; r < r1; ++r) {
          const int64_t n = t.first_row + r;
          excluded.clear();
          same.for_each_in_row(t, r, [&](int64_t c) { excluded.emplace_back(c, t.row(r)[c]); });
          loop.relative_weights(t.row(r), N, n, bands);
          for (const auto& [c, key] : excluded)
            t.row(r)[c] =
                bands.slope[n] * key / bands.norm[n] + bands.slope[c] * key / bands.norm[c];
        }
      });
      // W holds the weights of both entries of a pair, so that this product is the whole gradient
      // of a block's rows. l2: (x - y) / D instead of sign(x - y), 0 at D = 0; sqeuclidean: 2 (x -
      // y).
      if (keys.l2)
        W.div_(distance).masked_fill_(distance.eq(0), 0);
      else if (!keys.l1)
        W.mul_(2);
      const Tensor rows = keys.x.narrow(0, t.first_row, t.rows);
      Tensor own = result.narrow(0, t.first_row, t.rows);
      if (keys.l1 && t.rows == N)
        add_symmetric_signs<scalar_t>(W, rows, own);
      else if (keys.l1)
        add_signs<scalar_t>(W, rows, keys.x, own, nullptr);
      else
        add_differences<scalar_t>(W, rows, keys.x, own);
    });
  });
  return result;
}

}  // namespace itm::cpu
