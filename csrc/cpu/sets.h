#pragma once
// Batches of sets of rows, padded to the same number of rows: the rows that exist, and the products
// of all rows of two batches in tiles of whole sets.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "aten/optional_ids.h"
#include "aten/wide.h"
#include "cpu/instruction_set.h"
#include "cpu/parallel.h"

namespace itm::cpu {

// Sets [begin, end) of a batch.
struct Span {
  int64_t begin, end;
};

// Calls work(span) for every set of a span, as a span of one, on several threads.
template <typename Work>
void for_each_set(Span sets, Work&& work) {
  parallel_for(sets.begin, sets.end, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;  // of this thread
    for (int64_t n = begin; n < end; ++n) work(Span{n, n + 1});
  });
}

// The existing rows of all sets, packed: padded rows are never read.
template <typename T>
struct Sets {
  int64_t number, width;
  std::vector<int64_t> first;  // set n has the rows [first[n], first[n + 1])
  Tensor rows;                 // [total, D], of norm 1 if `unit`

  Sets(const Tensor& sets, const OptionalTensor& counts, bool unit = false)
      : number(sets.size(0)), width(sets.size(2)), first(number + 1), like_(sets) {
    const int64_t padded = sets.size(1);
    const Tensor existing = counts.has_value() ? counts->contiguous() : Tensor();
    const int64_t* count = counts.has_value() ? existing.const_data_ptr<int64_t>() : nullptr;
    for (int64_t n = 0; n < number; ++n) first[n + 1] = first[n] + (count ? count[n] : padded);
    const Tensor flat = sets.reshape({number * padded, width});
    if (total() == number * padded) {
      rows = wide(flat);
    } else {
      index_ = at::empty({total()}, sets.options().dtype(at::kLong));
      int64_t* index = index_.mutable_data_ptr<int64_t>();
      for (int64_t n = 0; n < number; ++n)
        for (int64_t r = first[n]; r < first[n + 1]; ++r) index[r] = n * padded + r - first[n];
      rows = wide(flat.index_select(0, index_));
    }
    if (unit) scale();
  }

  int64_t total() const { return first.back(); }
  int64_t size(int64_t n) const { return first[n + 1] - first[n]; }
  int64_t rows_of(Span span) const { return first[span.end] - first[span.begin]; }
  Tensor part(const Tensor& of, Span span) const {
    return of.narrow(0, first[span.begin], rows_of(span));
  }
  const T* row(int64_t r) const { return rows.template const_data_ptr<T>() + r * width; }

  // Returns the gradient of the sets from that of their rows, which it overwrites.
  Tensor gradient(const Tensor& of_rows) const {
    if (norm_.defined()) {
      T* grad = of_rows.template mutable_data_ptr<T>();
      const T* norm = norm_.template const_data_ptr<T>();
      parallel_for(0, total(), grain(2 * width), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          loops<T>().unit_gradient(grad + r * width, row(r), norm[r], grad + r * width, width);
      });
    }
    const Tensor grad = of_rows.to(like_.scalar_type());
    if (!index_.defined()) return grad.view(like_.sizes());
    const Tensor padded = at::zeros({number * like_.size(1), width}, grad.options());
    padded.index_copy_(0, index_, grad);
    return padded.view(like_.sizes());
  }

  // Divides the sets into consecutive spans of about equally many rows, at most `most` and a set.
  std::vector<Span> spans(int64_t most) const {
    const int64_t parts = std::max<int64_t>(1, (total() + most - 1) / most);
    std::vector<Span> found;
    for (int64_t n = 0; n < number; ++n) {
      const int64_t wanted = static_cast<int64_t>(found.size() + 1) * total() / parts;
      const int64_t begin = found.empty() ? 0 : found.back().end;
      if (first[n + 1] >= wanted && first[n + 1] > first[begin]) found.push_back({begin, n + 1});
    }
    return found;
  }

 private:
  const Tensor like_;
  Tensor index_;  // of the rows among the padded ones, if some are missing
  Tensor norm_;

  void scale() {
    const Tensor unit = at::empty_like(rows);
    norm_ = at::empty({total()}, rows.options());
    T *to = unit.mutable_data_ptr<T>(), *norm = norm_.mutable_data_ptr<T>();
    parallel_for(0, total(), grain(2 * width), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        norm[r] = loops<T>().unit_row(row(r), to + r * width, width);
    });
    rows = unit;
  }
};

// The products of the rows of a span of contexts and a span of queries.
template <typename T>
struct SetTile {
  Span contexts, queries;
  T* data;
  int64_t stride;
};

// Returns the products of a part of a tile as a matrix.
template <typename T>
Tensor products_of(const SetTile<T>& t, const Sets<T>& context, const Sets<T>& query, Span contexts,
                   Span queries) {
  const int64_t row = context.first[contexts.begin] - context.first[t.contexts.begin];
  const int64_t column = query.first[queries.begin] - query.first[t.queries.begin];
  return at::from_blob(t.data + row * t.stride + column,
                       {context.rows_of(contexts), query.rows_of(queries)}, {t.stride, 1},
                       context.rows.options());
}

// Some pairs of a tile, each as a span of one.
struct SetPairs {
  std::vector<std::vector<Span>> queries;   // of every context of the tile
  std::vector<std::vector<Span>> contexts;  // of every query of the tile
};

// Rows and columns of a tile. They do not depend on the number of threads, so that results do not.
// With tiles of 1,536 or 2,304 rows a step of cross attention is not faster.
constexpr int64_t kSetRows = 1024, kSetColumns = 4096;

// Computes tiles of the products of all rows, one at a time: in one buffer, or, if a tensor is
// given to keep, in its first entries as a matrix [rows of contexts, rows of queries].
//
// torch's BLAS library multiplies them. MKL runs AVX2 code on AMD CPUs with AVX-512. oneDNN's
// kernels for blocks (at::native::cpublas::brgemm), with the second matrix copied to panels, have
// 1.07 to 1.19 times its rate there, but a step of cross attention is not faster.
template <typename T>
class SetTiles {
 public:
  const std::vector<Span> contexts, queries;

  SetTiles(const Sets<T>& context, const Sets<T>& query, const Tensor& kept = {})
      : contexts(context.spans(kSetRows)),
        queries(query.spans(kSetColumns)),
        context_(context),
        query_(query) {
    if (kept.defined())
      kept_ = kept.view(-1)
                  .narrow(0, 0, context.total() * query.total())
                  .view({context.total(), query.total()});
  }

  SetTile<T> computed(Span of_context, Span of_query) {
    const Tensor tile =
        kept_.defined() ? kept_part(of_context, of_query) : buffer(of_context, of_query);
    at::addmm_out(const_cast<Tensor&>(tile), tile, context_.part(context_.rows, of_context),
                  query_.part(query_.rows, of_query).t(), /*beta=*/0);
    return of_tensor(tile, of_context, of_query);
  }

  // Computes the products of some pairs of a tile, in the buffer.
  SetTile<T> computed(Span of_context, Span of_query, const SetPairs& pairs) {
    const SetTile<T> t = buffered(of_context, of_query);
    for_each_set(of_context, [&](Span n) {
      for (const Span m : pairs.queries[n.begin - of_context.begin]) {
        Tensor of_pair = products_of(t, context_, query_, n, m);
        at::mm_out(of_pair, context_.part(context_.rows, n), query_.part(query_.rows, m).t());
      }
    });
    return t;
  }

  // Returns a tile of kept products, only to be read.
  SetTile<T> kept(Span of_context, Span of_query) const {
    return of_tensor(kept_part(of_context, of_query), of_context, of_query);
  }

  // Returns a tile to write in the buffer, where `computed` products are if none are kept.
  SetTile<T> buffered(Span of_context, Span of_query) {
    return of_tensor(buffer(of_context, of_query), of_context, of_query);
  }

 private:
  const Sets<T>&context_, &query_;
  Tensor kept_, buffer_;

  static SetTile<T> of_tensor(const Tensor& tile, Span of_context, Span of_query) {
    return {of_context, of_query, tile.mutable_data_ptr<T>(), tile.stride(0)};
  }

  Tensor kept_part(Span of_context, Span of_query) const {
    return context_.part(kept_, of_context)
        .narrow(1, query_.first[of_query.begin], query_.rows_of(of_query));
  }

  Tensor buffer(Span of_context, Span of_query) {
    const int64_t r = context_.rows_of(of_context), c = query_.rows_of(of_query);
    if (!buffer_.defined() || buffer_.numel() < r * c)
      buffer_ = at::empty({r * c}, context_.rows.options());
    return buffer_.narrow(0, 0, r * c).view({r, c});
  }
};

}  // namespace itm::cpu
