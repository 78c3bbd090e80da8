// Late interaction: tiles of products are reduced to the best context row of every query row. The
// gradient adds one row per query row and context to each side, and needs no product. Losses of
// hardest negatives give most scores no gradient: their pairs add no row.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "cpu/accumulate_rows.h"
#include "cpu/sets.h"

namespace itm::cpu {
namespace {

// The best context row of every query row of a tile, by contexts: value, and index or -1.
template <typename T>
struct Best {
  std::vector<T> value;
  std::vector<int64_t> index;

  void find(const SetTile<T>& t, const Sets<T>& context, const Sets<T>& query) {
    const int64_t contexts = t.contexts.end - t.contexts.begin;
    const int64_t queries = t.queries.end - t.queries.begin, columns = query.rows_of(t.queries);
    value.assign(contexts * columns, -std::numeric_limits<T>::infinity());
    index.assign(contexts * columns, -1);
    const int64_t first_row = context.first[t.contexts.begin];
    const int64_t first_column = query.first[t.queries.begin];
    const int64_t work = (context.rows_of(t.contexts) * columns) / (contexts * queries);
    parallel_for(0, contexts * queries, grain(work), [&](int64_t begin, int64_t end) {
      // A task is a range of pairs, which are ordered by contexts.
      for (int64_t k = begin; k < end;) {
        const int64_t i = k / queries, j = k % queries, last = std::min(queries, j + end - k);
        const int64_t n = t.contexts.begin + i, m = t.queries.begin;
        loops<T>().column_max(t.data + (context.first[n] - first_row) * t.stride, context.size(n),
                              t.stride, query.first[m + j] - first_column,
                              query.first[m + last] - first_column, 0, &value[i * columns],
                              &index[i * columns]);
        k += last - j;
      }
    });
  }
};

template <typename T>
void add_scores(const SetTile<T>& t, const Best<T>& best, const Sets<T>& context,
                const Sets<T>& query, bool mean, const Tensor& scores, const Tensor& winners) {
  const int64_t M = query.number, Q = winners.size(2), columns = query.rows_of(t.queries);
  T* score = scores.mutable_data_ptr<T>();
  int16_t* winner = winners.numel() ? winners.mutable_data_ptr<int16_t>() : nullptr;
  parallel_for(t.contexts.begin, t.contexts.end, grain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t at = (n - t.contexts.begin) * columns;
      for (int64_t m = t.queries.begin; m < t.queries.end; ++m) {
        const int64_t from = at + query.first[m] - query.first[t.queries.begin];
        const int64_t size = context.size(n) ? query.size(m) : 0;
        double sum = 0;
        for (int64_t l = 0; l < size; ++l) {
          sum += best.value[from + l];
          if (winner) winner[(n * M + m) * Q + l] = static_cast<int16_t>(best.index[from + l]);
        }
        score[n * M + m] = static_cast<T>(mean && size ? sum / static_cast<double>(size) : sum);
      }
    }
  });
}

// Adds the gradient of a tile's scores to rows of both sides.
template <typename T>
class RowGradients {
 public:
  RowGradients(const Sets<T>& context, const Sets<T>& query, const T* grad, bool mean)
      : of_context(at::zeros_like(context.rows)),
        of_query(at::zeros_like(query.rows)),
        context_(context),
        query_(query),
        grad_(grad),
        mean_(mean) {}

  const Tensor of_context, of_query;

  // index: of the best row within a context, or -1, [contexts, rows of queries] of the tile.
  void add(Span contexts, Span queries, const std::vector<int64_t>& index) const {
    const int64_t columns = query_.rows_of(queries), first = query_.first[queries.begin];
    std::vector<int64_t> query_of(columns);
    for (int64_t m = queries.begin; m < queries.end; ++m)
      std::fill(&query_of[0] + query_.first[m] - first, &query_of[0] + query_.first[m + 1] - first,
                m);
    const int64_t D = context_.width, number = contexts.end - contexts.begin;
    const auto adds = [&](int64_t i, int64_t c) {
      return index[i * columns + c] >= 0 && weight(contexts.begin + i, query_of[c]) != 0;
    };
    parallel_for(0, columns, grain(2 * number * D), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> rows(number);
      std::vector<T> weights(number);
      for (int64_t c = begin; c < end; ++c) {
        int64_t count = 0;
        for (int64_t i = 0; i < number; ++i) {
          if (!adds(i, c)) continue;
          rows[count] = context_.first[contexts.begin + i] + index[i * columns + c];
          weights[count++] = weight(contexts.begin + i, query_of[c]);
        }
        add_rows(of_query, first + c, context_, count, rows, weights);
      }
    });
    parallel_for(0, number, grain(2 * columns * D), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> rows(columns), place;
      std::vector<T> weights(columns);
      for (int64_t i = begin; i < end; ++i) {
        // Sort the query rows by their best row.
        const int64_t n = contexts.begin + i, *best = &index[i * columns];
        place.assign(context_.size(n) + 1, 0);
        for (int64_t c = 0; c < columns; ++c)
          if (adds(i, c)) ++place[best[c] + 1];
        for (int64_t r = 0; r < context_.size(n); ++r) place[r + 1] += place[r];
        for (int64_t c = 0; c < columns; ++c) {
          if (!adds(i, c)) continue;
          const int64_t k = place[best[c]]++;
          rows[k] = first + c;
          weights[k] = weight(n, query_of[c]);
        }
        for (int64_t r = 0; r < context_.size(n); ++r) {
          const int64_t from = r ? place[r - 1] : 0;
          add_rows(of_context, context_.first[n] + r, query_, place[r] - from, rows, weights, from);
        }
      }
    });
  }

 private:
  const Sets<T>&context_, &query_;
  const T* grad_;
  const bool mean_;

  T weight(int64_t n, int64_t m) const {
    const T g = grad_[n * query_.number + m];
    return mean_ ? g / static_cast<T>(query_.size(m)) : g;
  }

  static void add_rows(const Tensor& to, int64_t row, const Sets<T>& from, int64_t count,
                       const std::vector<int64_t>& rows, const std::vector<T>& weights,
                       int64_t first = 0) {
    const int64_t D = from.width;
    accumulate_rows<T>(count, to.mutable_data_ptr<T>() + row * D, D,
                       [&](int64_t begin, int64_t end, T* out) {
                         loops<T>().add_rows(out, from.row(0), &rows[0] + first + begin,
                                             &weights[0] + first + begin, end - begin, D);
                       });
  }
};

// Reads the kept winners of a tile.
template <typename T>
std::vector<int64_t> kept_winners(const Tensor& winners, const Sets<T>& query, Span contexts,
                                  Span queries) {
  const int64_t M = query.number, Q = winners.size(2), columns = query.rows_of(queries);
  const int16_t* winner = winners.const_data_ptr<int16_t>();
  std::vector<int64_t> index((contexts.end - contexts.begin) * columns);
  int64_t* to = index.data();
  for (int64_t n = contexts.begin; n < contexts.end; ++n)
    for (int64_t m = queries.begin; m < queries.end; ++m)
      for (int64_t l = 0; l < query.size(m); ++l) *to++ = winner[(n * M + m) * Q + l];
  return index;
}

std::tuple<Tensor, Tensor> late_interaction_forward(const Tensor& context, const Tensor& query,
                                                    const OptionalTensor& context_counts,
                                                    const OptionalTensor& query_counts, bool mean,
                                                    bool cosine, bool keep_winners) {
  const int64_t N = context.size(0), M = query.size(0), Q = query.size(1);
  const Tensor winners = keep_winners ? at::full({N, M, Q}, -1, context.options().dtype(at::kShort))
                                      : at::empty({0, 0, 0}, context.options().dtype(at::kShort));
  const auto type = at::toOpMathType(context.scalar_type());
  const Tensor scores = at::zeros({N, M}, context.options().dtype(type));
  AT_DISPATCH_FLOATING_TYPES(type, "late_interaction_forward", [&] {
    const Sets<scalar_t> of_context(context, context_counts, cosine);
    const Sets<scalar_t> of_query(query, query_counts, cosine);
    SetTiles<scalar_t> tiles(of_context, of_query);
    Best<scalar_t> best;
    for (const Span contexts : tiles.contexts)
      for (const Span queries : tiles.queries) {
        const SetTile<scalar_t> tile = tiles.computed(contexts, queries);
        best.find(tile, of_context, of_query);
        add_scores(tile, best, of_context, of_query, mean, scores, winners);
      }
  });
  return {scores, winners};
}

std::tuple<Tensor, Tensor> late_interaction_backward(const Tensor& grad, const Tensor& winners,
                                                     const Tensor& context, const Tensor& query,
                                                     const OptionalTensor& context_counts,
                                                     const OptionalTensor& query_counts, bool mean,
                                                     bool cosine) {
  const Tensor of_scores = wide(grad);
  std::tuple<Tensor, Tensor> found;
  AT_DISPATCH_FLOATING_TYPES(of_scores.scalar_type(), "late_interaction_backward", [&] {
    const Sets<scalar_t> of_context(context, context_counts, cosine);
    const Sets<scalar_t> of_query(query, query_counts, cosine);
    const RowGradients<scalar_t> gradients(of_context, of_query,
                                           of_scores.const_data_ptr<scalar_t>(), mean);
    SetTiles<scalar_t> tiles(of_context, of_query);
    Best<scalar_t> best;
    for (const Span contexts : tiles.contexts)
      for (const Span queries : tiles.queries) {
        if (winners.numel())
          best.index = kept_winners(winners, of_query, contexts, queries);
        else
          best.find(tiles.computed(contexts, queries), of_context, of_query);
        gradients.add(contexts, queries, best.index);
      }
    found = {of_context.gradient(gradients.of_context), of_query.gradient(gradients.of_query)};
  });
  return found;
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("late_interaction_forward", late_interaction_forward);
  m.impl("late_interaction_backward", late_interaction_backward);
}

}  // namespace
}  // namespace itm::cpu
