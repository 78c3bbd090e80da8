// The rank of each query's best positive: candidates with a higher score are counted tile by tile.
//
// The score of the best positive is taken from the same products that it is compared with, in a
// first pass over the tiles that hold positives: computed in another way it would round differently
// and could rank a positive behind itself. Queries and candidates are sorted by id, so that the
// positives of a block of queries lie in one or two tiles and hardly any tile is computed twice.
// Copies of the best positive tie with it by their keys, because another tile of the product may
// round them differently.

#include <ATen/Dispatch.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;

// Per query: the negatives above its best positive, and the negatives and positives that tie.
struct Counts {
  int64_t *above, *ties, *positives;
};

// Counts the candidates of the queries of one row of tiles.
template <typename T>
class QueryBlock {
 public:
  QueryBlock(const ScoreTiles<T>& tiles, const SameId& same, const SameId& copies, int64_t first,
             const Counts& counts)
      : tiles_(tiles),
        same_(same),
        copies_(copies),
        first_(first),
        rows_(std::min(tiles.rows, tiles.N - first)),
        counts_{counts.above + first, counts.ties + first, counts.positives + first},
        best_(rows_, kNone),
        best_column_(rows_) {}

  void count() {
    const std::vector<int64_t> holding = tiles_with_positives();
    for (const int64_t j : holding) {
      const Tile<T> tile = tiles_(first_, j);
      update_best(tile);
      if (holding.size() == 1) count_in(tile);
    }
    for (int64_t j = 0; j < tiles_.M; j += tiles_.columns)
      if (holding.size() != 1 || holding[0] != j) count_in(tiles_(first_, j));
  }

 private:
  static constexpr T kNone = -std::numeric_limits<T>::infinity();

  std::vector<int64_t> tiles_with_positives() const {
    const int64_t width = tiles_.columns;
    std::vector<int64_t> first_columns;
    if (width >= tiles_.M) return {0};
    std::vector<bool> holds((tiles_.M + width - 1) / width);
    const Tile<T> all{first_, rows_, 0, tiles_.M, nullptr};
    for (int64_t r = 0; r < rows_; ++r)
      same_.for_each_in_row(all, r, [&](int64_t c) { holds[c / width] = true; });
    for (size_t k = 0; k < holds.size(); ++k)
      if (holds[k]) first_columns.push_back(static_cast<int64_t>(k) * width);
    return first_columns;
  }

  // Ignores scores that are not finite.
  void update_best(const Tile<T>& tile) {
    for_each_same_id(tile, same_, [&](int64_t r, int64_t c) {
      const T score = tile.row(r)[c];
      if (score > best_[r] && score < -kNone) {
        best_[r] = score;
        best_column_[r] = tile.first_column + c;
      }
    });
  }

  void count_in(const Tile<T>& tile) {
    const auto& loop = loops<T>();
    parallel_for(0, rows_, grain(tile.columns), [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) {
        if (best_[r] == kNone) continue;
        const T *row = tile.row(r), best = best_[r];
        auto [above, equal] = loop.count_above(row, tile.columns, best);
        std::vector<bool> copied;  // columns of the tile, if any column is a copy
        const Tile<T> of_best{best_column_[r], 1, tile.first_column, tile.columns, nullptr};
        copies_.for_each_in_row(of_best, 0, [&](int64_t c) {
          copied.resize(tile.columns);
          copied[c] = true;
          above -= row[c] > best;
          equal += row[c] != best;
        });
        int64_t positives = 0;
        same_.for_each_in_row(tile, r, [&](int64_t c) {
          if (row[c] == best || (!copied.empty() && copied[c]))
            ++positives;
          else
            above -= row[c] > best;  // a positive with an infinite score
        });
        counts_.above[r] += above;
        counts_.ties[r] += equal - positives;
        counts_.positives[r] += positives;
      }
    });
  }

  const ScoreTiles<T>& tiles_;
  const SameId &same_, &copies_;
  const int64_t first_, rows_;
  const Counts counts_;
  std::vector<T> best_;
  std::vector<int64_t> best_column_;
};

Three ranks_in_order(const Tensor& queries, const Tensor& gallery, const Tensor& query_ids,
                     const Tensor& gallery_ids, const Tensor& gallery_keys) {
  const Tensor x = wide(queries), y = wide(gallery);
  const SameId same(query_ids, gallery_ids), copies(gallery_keys, gallery_keys);
  const auto none = [&] { return at::zeros({x.size(0)}, x.options().dtype(at::kLong)); };
  const Tensor above = none(), ties = none(), positives = none();
  const Counts counts{above.mutable_data_ptr<int64_t>(), ties.mutable_data_ptr<int64_t>(),
                      positives.mutable_data_ptr<int64_t>()};
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "ranks", [&] {
    const ScoreTiles<scalar_t> tiles(x, y, 1);
    for (int64_t i = 0; i < tiles.N; i += tiles.rows)
      QueryBlock<scalar_t>(tiles, same, copies, i, counts).count();
  });
  return {above, ties, positives};
}

Three ranks(const Tensor& queries, const Tensor& gallery, const Tensor& query_ids,
            const Tensor& gallery_ids, const Tensor& gallery_keys) {
  if (gallery.size(0) <= kTileColumns)
    return ranks_in_order(queries, gallery, query_ids, gallery_ids, gallery_keys);
  const Tensor order = at::argsort(query_ids, /*stable=*/true);
  const Tensor gallery_order = at::argsort(gallery_ids, /*stable=*/true);
  const auto [above, ties, positives] =
      ranks_in_order(queries.index_select(0, order), gallery.index_select(0, gallery_order),
                     query_ids.index_select(0, order), gallery_ids.index_select(0, gallery_order),
                     gallery_keys.index_select(0, gallery_order));
  const auto back = [&](const Tensor& counts) {
    return at::empty_like(counts).index_copy_(0, order, counts);
  };
  return {back(above), back(ties), back(positives)};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) { m.impl("ranks_forward", ranks); }

}  // namespace
}  // namespace itm::cpu
