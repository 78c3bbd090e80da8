#pragma once
// Tensors of a whole small-batch loss: the dot products of its rows in one launch, and the ticket
// of its total.

#include <initializer_list>
#include <utility>

#include "cuda/small_batch/dot_products.h"
#include "cuda/small_batch/small_batch_binding.h"

namespace itm::cuda {

// x y^T of pairs of padded rows [1, N, D] and, on request, the squared norms of the first pair's
// rows.
struct StoredDotProducts {
  Tensor parts[kMostProducts], x_squares, y_squares, ticket;
  ScoreParts from[kMostProducts];

  StoredDotProducts(const OnDevice& device,
                    std::initializer_list<std::pair<const Tensor&, const Tensor&>> pairs,
                    bool squares = false) {
    const Tensor& any = pairs.begin()->first;
    const auto like = any.options().dtype(wide_type(any));
    ticket = at::empty({1}, any.options().dtype(at::kInt));
    DotProducts all{.of = {}, .count = 0, .D = any.size(2), .plan = {}, .ticket = counter()};
    for (const auto& [x, y] : pairs) {
      check_rows(x.size(1), y.size(1));
      all.of[all.count++] = {.x = matrix_of(x), .y = matrix_of(y)};
    }
    all.plan = plan_dot_products(all);
    for (int i = 0; i < all.count; ++i) {
      const int64_t N = all.of[i].x.rows, M = all.of[i].y.rows;
      parts[i] = at::empty({all.plan.parts, N, M}, like);
      all.of[i].parts = parts[i].mutable_data_ptr();
      from[i] = {parts[i].const_data_ptr(), all.plan.parts, N, M};
    }
    if (squares) {
      x_squares = at::empty({all.plan.parts, all.of[0].x.rows}, like);
      y_squares = at::empty({all.plan.parts, all.of[0].y.rows}, like);
      all.of[0].x_squares = x_squares.mutable_data_ptr();
      all.of[0].y_squares = y_squares.mutable_data_ptr();
    }
    dot_products(type_of(any), all, device.stream());
    device.check_launch();
  }

  unsigned* counter() const { return reinterpret_cast<unsigned*>(ticket.mutable_data_ptr<int>()); }
};

}  // namespace itm::cuda
