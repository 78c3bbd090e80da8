// Rank of every query's best positive: candidates are counted in the tile that scores them.
//
// The best positive is known before anything is compared with it, and comes from the products that
// it is compared with: a second way of computing it would round differently and rank a positive
// behind itself. With queries and candidates in the order of their ids the positives of a block of
// queries lie in one tile or two, so that hardly a product is computed twice.

#include <ATen/Dispatch.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include "binding/common.h"
#include "binding/pairs.h"

namespace itm {
namespace {

// Counts candidates above the best positive of the queries of one row of tiles.
template <typename T>
class BlockOfQueries {
 public:
  BlockOfQueries(const Products<T>& product, const SameId& same, int64_t first, int64_t* rank)
      : product_(product),
        same_(same),
        first_(first),
        rows_(std::min(product.rows, product.N - first)),
        rank_(rank + first),
        best_(rows_, -std::numeric_limits<T>::infinity()) {}

  void count() {
    const std::vector<int64_t> holding = tiles_with_positives();
    for (const int64_t j : holding) {
      const Tile<T> tile = product_(first_, j);
      note_best(tile);
      if (holding.size() == 1) count_above(tile);
    }
    for (int64_t j = 0; j < product_.M; j += product_.columns)
      if (holding.size() != 1 || holding[0] != j) count_above(product_(first_, j));
  }

 private:
  std::vector<int64_t> tiles_with_positives() const {
    const int64_t width = product_.columns;
    std::vector<int64_t> first_columns;
    if (width >= product_.M) return {0};
    std::vector<bool> holds((product_.M + width - 1) / width);
    const Tile<T> all{first_, rows_, 0, product_.M, nullptr};
    for (int64_t r = 0; r < rows_; ++r)
      same_.for_each_in_row(all, r, [&](int64_t c) { holds[c / width] = true; });
    for (size_t k = 0; k < holds.size(); ++k)
      if (holds[k]) first_columns.push_back(static_cast<int64_t>(k) * width);
    return first_columns;
  }

  void note_best(const Tile<T>& tile) {
    for_each_same_id(tile, same_, [&](int64_t r, int64_t c) {
      const T score = tile.row(r)[c], best = best_[r];
      best_[r] = best >= score || best != best ? best : score;  // NaN is the best and stays
    });
  }

  void count_above(const Tile<T>& tile) {
    const auto& loop = cpu::loops<T>(kernels());
    parallel_for(0, rows_, grain(tile.columns), [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r)
        rank_[r] += loop.count_above(tile.row(r), tile.columns, best_[r]);
    });
  }

  const Products<T>& product_;
  const SameId& same_;
  const int64_t first_, rows_;
  int64_t* const rank_;
  std::vector<T> best_;
};

Tensor ranks_in_order(const Tensor& queries, const Tensor& gallery, const Tensor& query_ids,
                      const Tensor& gallery_ids) {
  const Tensor x = wide(queries), y = wide(gallery);
  const SameId same(query_ids, gallery_ids);
  Tensor rank = at::ones({x.size(0)}, x.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "ranks", [&] {
    const Products<scalar_t> product(x, y, 1);
    for (int64_t i = 0; i < product.N; i += product.rows)
      BlockOfQueries<scalar_t>(product, same, i, rank.mutable_data_ptr<int64_t>()).count();
  });
  return rank;
}

Tensor ranks(const Tensor& queries, const Tensor& gallery, const Tensor& query_ids,
             const Tensor& gallery_ids) {
  if (gallery.size(0) <= kTileColumns)
    return ranks_in_order(queries, gallery, query_ids, gallery_ids);
  const Tensor order = at::argsort(query_ids, /*stable=*/true);
  const Tensor gallery_order = at::argsort(gallery_ids, /*stable=*/true);
  const Tensor rank =
      ranks_in_order(queries.index_select(0, order), gallery.index_select(0, gallery_order),
                     query_ids.index_select(0, order), gallery_ids.index_select(0, gallery_order));
  return at::empty_like(rank).index_copy_(0, order, rank);
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) { m.impl("ranks", ranks); }

}  // namespace
}  // namespace itm
