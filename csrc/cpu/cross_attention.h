#pragma once
// Cross attention of tiles of products: options, Gram matrices of contexts, and workspaces.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/sets.h"

namespace itm::cpu {

using simd::Attention;
using simd::OverQuery;

struct Options {
  bool clipped;
  OverQuery over_query;
  double smooth;
  std::string_view aggregate;
  double scale;

  Options(std::string_view feature_norm, double smooth, std::string_view aggregate, double scale)
      : clipped(feature_norm.starts_with("clipped")),
        over_query(feature_norm == "softmax"          ? OverQuery::kSoftmax
                   : feature_norm.ends_with("l2norm") ? OverQuery::kNorm
                                                      : OverQuery::kNothing),
        smooth(smooth),
        aggregate(aggregate),
        scale(scale) {}

  // Returns the aggregate of the cosines of a query. If `grad` is given, multiplies weight, the
  // gradient of the aggregate, by it and writes the gradient of the cosines.
  template <typename T>
  double aggregated(const T* cosine, int64_t size, double weight = 0, T* grad = nullptr) const {
    int64_t highest = 0;
    for (int64_t k = 1; k < size; ++k)
      if (!(cosine[k] <= cosine[highest]) && cosine[highest] == cosine[highest]) highest = k;
    if (aggregate == "max") {
      for (int64_t k = 0; k < size && grad; ++k)
        grad[k] = k == highest ? static_cast<T>(weight) : 0;
      return cosine[highest];
    }
    const bool soft = aggregate == "log_sum_exp";
    double sum = 0;
    for (int64_t k = 0; k < size; ++k)
      sum +=
          soft ? std::exp(scale * (static_cast<double>(cosine[k]) - cosine[highest])) : cosine[k];
    for (int64_t k = 0; k < size && grad; ++k) {
      double share = aggregate == "mean" ? 1. / static_cast<double>(size) : 1;
      if (soft) share = std::exp(scale * (static_cast<double>(cosine[k]) - cosine[highest])) / sum;
      grad[k] = static_cast<T>(weight * share);
    }
    if (soft) return cosine[highest] + std::log(sum) / scale;
    return aggregate == "mean" ? sum / static_cast<double>(size) : sum;
  }
};

// The Gram matrix of a context, and what the loops need to know about its entries below 0.
template <typename T>
struct Gram {
  std::vector<T> padded;
  std::vector<double> exact;
  double largest = 0, row = 0;

  Gram(const Sets<T>& context, int64_t n) : exact(context.size(n) * context.size(n)) {
    const int64_t C = context.size(n);
    constexpr int64_t kRows = Attention<T>::kRows;
    const int64_t P = (C + kRows - 1) / kRows * kRows;
    padded.assign(C * P, T(0));
    const Tensor rows = context.part(context.rows, {n, n + 1}).to(at::kDouble);
    Tensor gram = at::from_blob(exact.data(), {C, C}, rows.options());
    at::mm_out(gram, rows, rows.t());
    for (int64_t r = 0; r < C; ++r) {
      double below = 0;
      for (int64_t c = 0; c < C; ++c) {
        const double g = exact[r * C + c];
        padded[r * P + c] = static_cast<T>(g);
        below += g < 0 ? -g : 0;
        largest = std::max(largest, -g);
      }
      row = std::max(row, below);
    }
  }
};

// The workspace of one thread for up to `columns` query rows.
template <typename T>
class Workspace {
 public:
  const std::vector<Span> groups;  // of the queries

  // Groups of queries whose attention fits the second-level cache twice.
  Workspace(const Sets<T>& context, const Sets<T>& query, const Tensor& norms, const Options& o,
            Span queries)
      : groups(grouped(context, query, queries)), context_(context), query_(query) {
    int64_t rows = 0, columns = 0, number = 0;
    for (int64_t n = 0; n < context.number; ++n) rows = std::max(rows, context.size(n));
    for (const Span g : groups) {
      columns = std::max(columns, query.rows_of(g));
      number = std::max(number, g.end - g.begin);
    }
    constexpr int64_t kStep = 128 / sizeof(T), kRows = Attention<T>::kRows;
    base_.stride = (columns + kStep - 1) / kStep * kStep;
    rows = (rows + kRows - 1) / kRows * kRows;
    memory_.resize((2 * rows + Attention<T>::kColumns) * base_.stride + 2 * rows * number);
    exact_.resize(3 * rows);
    base_.clipped = o.clipped;
    base_.over_query = o.over_query;
    base_.smooth = static_cast<T>(o.smooth);
    base_.alpha = memory_.data();
    base_.attended = base_.alpha + rows * base_.stride;
    base_.of_columns = base_.attended + rows * base_.stride;
    base_.over = base_.of_columns + Attention<T>::kColumns * base_.stride;
    base_.exact = exact_.data();
    norms_ = norms.const_data_ptr<T>();
  }

  Attention<T> at(const Gram<T>& gram, int64_t n, Span queries) const {
    Attention<T> a = base_;
    a.rows = context_.size(n);
    a.gram = gram.padded.data();
    a.exact_gram = std::is_same_v<T, double> ? nullptr : gram.exact.data();
    a.largest = static_cast<T>(gram.largest);
    a.row = static_cast<T>(gram.row);
    a.first = &query_.first[queries.begin];
    a.queries = queries.end - queries.begin;
    a.columns = query_.rows_of(queries);
    a.query_norm = norms_ + query_.first[queries.begin];
    a.context_rows = context_.row(context_.first[n]);
    a.query_rows = query_.row(query_.first[queries.begin]);
    a.width = query_.width;
    return a;
  }

 private:
  const Sets<T>&context_, &query_;
  Attention<T> base_{};
  std::vector<T> memory_;
  std::vector<double> exact_;
  const T* norms_;

  static std::vector<Span> grouped(const Sets<T>& context, const Sets<T>& query, Span queries) {
    constexpr int64_t kEntries = 65536 / sizeof(T);
    int64_t rows = 1;
    for (int64_t n = 0; n < context.number; ++n) rows = std::max(rows, context.size(n));
    const int64_t most = std::max<int64_t>(64, kEntries / rows);
    std::vector<Span> found;
    for (int64_t m = queries.begin; m < queries.end; ++m) {
      if (found.empty() || query.rows_of({found.back().begin, m + 1}) > most)
        found.push_back({m, m});
      found.back().end = m + 1;
    }
    return found;
  }
};

// Returns the norms of rows, summed in fp64.
template <typename T>
Tensor norms_of(const Sets<T>& sets) {
  const Tensor norms = at::empty({sets.total()}, sets.rows.options());
  T* norm = norms.mutable_data_ptr<T>();
  parallel_for(0, sets.total(), grain(sets.width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      norm[r] = static_cast<T>(std::sqrt(loops<T>().product(sets.row(r), sets.row(r), sets.width)));
  });
  return norms;
}

// The Gram matrices of a span of contexts.
template <typename T>
std::vector<Gram<T>> grams_of(const Sets<T>& context, Span contexts) {
  std::vector<std::optional<Gram<T>>> found(contexts.end - contexts.begin);
  for_each_set(contexts,
               [&](Span n) { found[n.begin - contexts.begin].emplace(context, n.begin); });
  std::vector<Gram<T>> grams;
  for (auto& gram : found) grams.push_back(std::move(*gram));
  return grams;
}

template <typename T>
struct AttendedSets {
  const Sets<T> context, query;
  const Options options;
  const Tensor norms = norms_of(query);

  // Calls visit(attention, its products, their stride, context, queries) for the contexts of a tile
  // and groups of its queries, or some pairs, on several threads; all of a context on one. Returns
  // how many cosines were computed in fp64.
  template <typename Visit>
  int64_t for_each_attention(const SetTile<T>& t, const std::vector<Gram<T>>& grams, Visit&& visit,
                             const SetPairs* pairs = nullptr) const {
    const int64_t first_row = context.first[t.contexts.begin];
    const int64_t first_column = query.first[t.queries.begin];
    std::atomic<int64_t> exact = 0;
    parallel_for(t.contexts.begin, t.contexts.end, 1, [&](int64_t begin, int64_t end) {
      const Workspace<T> workspace(context, query, norms, options, t.queries);
      for (int64_t n = begin; n < end; ++n) {
        if (!context.size(n)) continue;
        for (const Span queries : pairs ? pairs->queries[n - t.contexts.begin] : workspace.groups) {
          const T* s = t.data + (context.first[n] - first_row) * t.stride +
                       query.first[queries.begin] - first_column;
          const Gram<T>& gram = grams[n - t.contexts.begin];
          const Attention<T> a = workspace.at(gram, n, queries);
          exact += loops<T>().attend(a, s, t.stride);
          visit(a, s, t.stride, n, queries);
        }
      }
    });
    return exact;
  }
};

}  // namespace itm::cpu
