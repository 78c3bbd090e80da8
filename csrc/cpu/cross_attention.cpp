// Stacked cross attention: tiles of products are reduced to cosines, context by context. No vector
// that is attended to is formed: the Gram matrix of a context gives its norm.
//
// The gradient of the products overwrites a tile, which is then multiplied by both sides. Losses of
// hardest negatives give most scores no gradient: their pairs are left out.

#include "cpu/cross_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "cpu/huge_pages.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {
namespace {

std::tuple<Tensor, Tensor> cross_attention_forward(const Tensor& context, const Tensor& query,
                                                   const OptionalTensor& context_counts,
                                                   const OptionalTensor& query_counts,
                                                   std::string_view feature_norm, double smooth,
                                                   std::string_view aggregate, double scale,
                                                   bool keep_products) {
  const int64_t N = context.size(0), C = context.size(1), M = query.size(0), Q = query.size(1);
  const auto options = context.options().dtype(at::toOpMathType(context.scalar_type()));
  const Tensor scores = at::zeros({N, M}, options);
  const Tensor kept =
      keep_products ? empty_in_huge_pages({N, C, M, Q}, options) : at::empty({0, 0, 0, 0}, options);
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "cross_attention_forward", [&] {
    const AttendedSets<scalar_t> p{
        {context, context_counts}, {query, query_counts}, {feature_norm, smooth, aggregate, scale}};
    SetTiles<scalar_t> tiles(p.context, p.query, if_kept(kept));
    if (keep_products) {
      const int64_t used = p.context.total() * p.query.total();
      kept.view(-1).narrow(0, used, kept.numel() - used).zero_();
    }
    scalar_t* score = scores.mutable_data_ptr<scalar_t>();
    for (const Span contexts : tiles.contexts) {
      const auto grams = grams_of(p.context, contexts);
      for (const Span queries : tiles.queries)
        p.for_each_attention(
            tiles.computed(contexts, queries), grams,
            [&](const Attention<scalar_t>& a, const scalar_t*, int64_t, int64_t n, Span group) {
              for (int64_t m = group.begin; m < group.end; ++m)
                if (p.query.size(m))
                  score[n * M + m] = static_cast<scalar_t>(p.options.aggregated(
                      a.cosine() + p.query.first[m] - p.query.first[group.begin], p.query.size(m)));
            });
    }
  });
  return {scores, kept};
}

// Pair by pair, the gradient of one pair takes about twice as long as its share of a tile with
// 36 x 20 x 1,024 multiplications per pair, and ten times with 8 x 6 x 64.
constexpr int64_t kPairsPerGradient = 8;

// Returns the pairs of a tile whose scores have a gradient other than 0, if they are few.
template <typename T>
std::optional<SetPairs> few_pairs(const Sets<T>& context, const Sets<T>& query, Span contexts,
                                  Span queries, const T* grad) {
  const int64_t N = contexts.end - contexts.begin, M = queries.end - queries.begin;
  SetPairs found{std::vector<std::vector<Span>>(N), std::vector<std::vector<Span>>(M)};
  int64_t left = N * M / kPairsPerGradient;
  for (int64_t n = contexts.begin; n < contexts.end; ++n)
    for (int64_t m = queries.begin; m < queries.end; ++m) {
      if (grad[n * query.number + m] == 0 || !context.size(n) || !query.size(m)) continue;
      if (left-- == 0) return std::nullopt;
      found.queries[n - contexts.begin].push_back({m, m + 1});
      found.contexts[m - queries.begin].push_back({n, n + 1});
    }
  return found;
}

// The gradients of both sides, tile by tile.
template <typename T>
class SideGradients {
 public:
  explicit SideGradients(const AttendedSets<T>& p)
      : of_context(uninitialised(p.context, p.query)),
        of_query(uninitialised(p.query, p.context)),
        p_(p),
        own_(p.query.total()) {}

  const Tensor of_context, of_query;

  // Writes the gradient of the products of a tile, or of some pairs, to `to`, which may be that
  // tile, and multiplies it by both sides. Returns how many cosines were computed in fp64.
  int64_t add(const SetTile<T>& t, const SetPairs* pairs, const SetTile<T>& to,
              const std::vector<Gram<T>>& grams, const T* grad,
              std::vector<std::vector<double>>& of_grams) {
    const int64_t M = p_.query.number, columns = p_.query.rows_of(t.queries);
    const int64_t first = p_.query.first[t.queries.begin];
    std::vector<T> own((t.contexts.end - t.contexts.begin) * columns);
    const int64_t first_row = p_.context.first[t.contexts.begin];
    const auto to_gradient = [&](const Attention<T>& a, const T* s, int64_t stride, int64_t n,
                                 Span group) {
      const int64_t from = p_.query.first[group.begin];
      for (int64_t m = group.begin; m < group.end; ++m) {
        const int64_t at = p_.query.first[m] - from, size = p_.query.size(m);
        if (size) p_.options.aggregated(a.cosine() + at, size, grad[n * M + m], a.of_cosine() + at);
      }
      const int64_t i = n - t.contexts.begin;
      T* out = to.data + (p_.context.first[n] - first_row) * to.stride + from - first;
      loops<T>().attention_gradient(a, s, stride, out, to.stride, &own[i * columns + from - first],
                                    of_grams[i].data());
    };
    const int64_t exact = p_.for_each_attention(t, grams, to_gradient, pairs);
    for (int64_t i = 0; i < t.contexts.end - t.contexts.begin; ++i)
      for (int64_t c = 0; c < columns; ++c) own_[first + c] += own[i * columns + c];
    if (pairs)
      multiply(to, *pairs);
    else
      multiply(to);
    return exact;
  }

  // Adds the part through the norms of what is attended to. Rows that cancel in these norms, which
  // were then computed in fp64, cancel here again.
  void add_grams(Span contexts, std::vector<std::vector<double>>& of_grams, bool in_double) const {
    for_each_set(contexts, [&](Span n) {
      const int64_t C = p_.context.rows_of(n);
      double* gram = of_grams[n.begin - contexts.begin].data();
      for (int64_t r = 0; r < C; ++r)
        for (int64_t c = 0; c < r; ++c) gram[r * C + c] = gram[c * C + r];
      const Tensor rows = p_.context.part(p_.context.rows, n);
      const Tensor factors = at::from_blob(gram, {C, C}, rows.options().dtype(at::kDouble));
      Tensor to = p_.context.part(of_context, n);
      if (in_double)
        to.add_(factors.mm(rows.to(at::kDouble)));
      else
        to.addmm_(factors.to(rows.scalar_type()), rows);
    });
  }

  // Adds the part through the norms of the query rows.
  void add_own() const {
    const int64_t D = p_.query.width;
    T* to = of_query.template mutable_data_ptr<T>();
    parallel_for(0, p_.query.total(), grain(D), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T weight = static_cast<T>(own_[r]);
        loops<T>().add_rows(to + r * D, p_.query.row(r), nullptr, &weight, 1, D);
      }
    });
  }

 private:
  const AttendedSets<T>& p_;
  std::vector<double> own_;  // factors of the query rows

  void multiply(const SetTile<T>& t) const {
    const Tensor of_products = products_of(t, p_.context, p_.query, t.contexts, t.queries);
    const Tensor x = p_.context.part(p_.context.rows, t.contexts);
    const Tensor y = p_.query.part(p_.query.rows, t.queries);
    add_product(p_.context.part(of_context, t.contexts), of_products, y, t.queries.begin == 0);
    add_product(p_.query.part(of_query, t.queries), of_products.t(), x, t.contexts.begin == 0);
  }

  void multiply(const SetTile<T>& t, const SetPairs& pairs) const {
    const Sets<T>&context = p_.context, &query = p_.query;
    for_each_set(t.contexts, [&](Span n) {
      Tensor to = context.part(of_context, n);
      if (t.queries.begin == 0) to.zero_();
      for (const Span m : pairs.queries[n.begin - t.contexts.begin])
        to.addmm_(products_of(t, context, query, n, m), query.part(query.rows, m));
    });
    for_each_set(t.queries, [&](Span m) {
      Tensor to = query.part(of_query, m);
      if (t.contexts.begin == 0) to.zero_();
      for (const Span n : pairs.contexts[m.begin - t.queries.begin])
        to.addmm_(products_of(t, context, query, n, m).t(), context.part(context.rows, n));
    });
  }

  // Returns the gradient of the rows of a side, which the first product overwrites, if there is
  // one.
  static Tensor uninitialised(const Sets<T>& side, const Sets<T>& other) {
    return other.total() ? at::empty_like(side.rows) : at::zeros_like(side.rows);
  }
};

std::tuple<Tensor, Tensor> cross_attention_backward(const Tensor& grad, const Tensor& kept,
                                                    const Tensor& context, const Tensor& query,
                                                    const OptionalTensor& context_counts,
                                                    const OptionalTensor& query_counts,
                                                    std::string_view feature_norm, double smooth,
                                                    std::string_view aggregate, double scale) {
  const Tensor of_scores = wide(grad);
  std::tuple<Tensor, Tensor> found;
  AT_DISPATCH_FLOATING_TYPES(of_scores.scalar_type(), "cross_attention_backward", [&] {
    const AttendedSets<scalar_t> p{
        {context, context_counts}, {query, query_counts}, {feature_norm, smooth, aggregate, scale}};
    SetTiles<scalar_t> kept_tiles(p.context, p.query, if_kept(kept)), tiles(p.context, p.query);
    SideGradients<scalar_t> gradients(p);
    for (const Span contexts : tiles.contexts) {
      const auto grams = grams_of(p.context, contexts);
      std::vector<std::vector<double>> of_grams;
      for (const auto& gram : grams) of_grams.emplace_back(gram.exact.size());
      int64_t exact = 0;
      for (const Span queries : tiles.queries) {
        const scalar_t* grad = of_scores.const_data_ptr<scalar_t>();
        const auto few = few_pairs(p.context, p.query, contexts, queries, grad);
        const auto tile = kept.numel() ? kept_tiles.kept(contexts, queries)
                          : few        ? tiles.computed(contexts, queries, *few)
                                       : tiles.computed(contexts, queries);
        exact += gradients.add(tile, few ? &*few : nullptr, tiles.buffered(contexts, queries),
                               grams, grad, of_grams);
      }
      gradients.add_grams(contexts, of_grams, exact > 0);
    }
    gradients.add_own();
    found = {p.context.gradient(gradients.of_context), p.query.gradient(gradients.of_query)};
  });
  return found;
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("cross_attention_forward", cross_attention_forward);
  m.impl("cross_attention_backward", cross_attention_backward);
}

}  // namespace
}  // namespace itm::cpu
