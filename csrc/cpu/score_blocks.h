#pragma once
// Blocks of a score matrix that the caller computed, for the loops over tiles.

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>

#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {

// Returns the options of tensors in the precision in which scores are computed.
inline at::TensorOptions wide_options(const Tensor& scores) {
  const bool is_double = scores.scalar_type() == at::kDouble;
  return scores.options().dtype(is_double ? at::kDouble : at::kFloat);
}

// Calls visit(tile) for blocks of whole rows of scores [N, M] times alpha, in increasing order. The
// scores may have any strides and any floating dtype. The tile is a copy, which visit may
// overwrite. It fits a second-level cache, so that the matrix is read once from memory. Blocks have
// a multiple of 16 rows, which column sums add in one chain.
template <typename T, typename Visit>
void for_each_score_block(const Tensor& scores, double alpha, Visit&& visit) {
  const int64_t N = scores.size(0), M = scores.size(1);
  const int64_t in_cache = kTileRows * at::get_num_threads() * kTileColumns / M;
  const int64_t rows = std::min(N, std::max<int64_t>(16, in_cache / 16 * 16));
  const Tensor buffer = at::empty({rows, M}, wide_options(scores));
  for (int64_t i = 0; i < N; i += rows) {
    const int64_t r = std::min(rows, N - i);
    Tensor block = buffer.narrow(0, 0, r);
    block.copy_(scores.narrow(0, i, r));
    if (alpha != 1) block.mul_(alpha);
    visit(Tile<T>{i, r, 0, M, block.template mutable_data_ptr<T>()});
  }
}

// Does the same for the gradient of the scores: to_gradient(tile) turns a tile into the gradient of
// alpha times the scores.
template <typename T, typename ToGradient>
Tensor gradient_of_score_blocks(const Tensor& scores, double alpha, ToGradient&& to_gradient) {
  Tensor grad = at::empty({scores.size(0), scores.size(1)}, scores.options());
  for_each_score_block<T>(scores, alpha, [&](const Tile<T>& t) {
    to_gradient(t);
    Tensor block = at::from_blob(t.data, {t.rows, t.columns}, wide_options(scores));
    if (alpha != 1) block.mul_(alpha);
    grad.narrow(0, t.first_row, t.rows).copy_(block);
  });
  return grad;
}

// Returns the sum of a tile of weights times the unscaled scores, the gradient of a scale. Pairs
// that share an id and are not positive take no part, whatever their scores are, and neither does a
// score of -inf, whose weight is 0.
template <typename T>
double weighted_sum(const Tile<T>& weights, const Tensor& scores, const SameId& same,
                    const int64_t* positive_of) {
  const Tensor rows = scores.narrow(0, weights.first_row, weights.rows).to(wide_options(scores));
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const Tensor block = rows.masked_fill(rows.eq(-infinity), 0).contiguous();
  const T* s = block.const_data_ptr<T>();
  const int64_t M = weights.columns;
  const auto& loop = loops<T>();
  std::vector<double> of_row(weights.rows);
  parallel_for(0, weights.rows, grain(2 * M), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const T *w = weights.row(r), *x = s + r * M;
      int64_t first = 0;
      same.for_each_in_row(weights, r, [&](int64_t c) {
        of_row[r] += loop.product(w + first, x + first, c - first);
        const int64_t i = weights.first_row + r;
        if (!positive_of || positive_of[c] == i) of_row[r] += static_cast<double>(w[c]) * x[c];
        first = c + 1;
      });
      of_row[r] += loop.product(w + first, x + first, M - first);
    }
  });
  return std::accumulate(of_row.begin(), of_row.end(), 0.0);
}

}  // namespace itm::cpu
