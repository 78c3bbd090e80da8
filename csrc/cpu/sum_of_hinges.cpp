// Sum of hinges: the hinges of every tile of scores are summed per pair and the tile is discarded.

#include <ATen/Dispatch.h>
#include <ATen/ops/arange.h>
#include <torch/library.h>

#include "cpu/accumulate_rows.h"
#include "cpu/hinge_sums.h"
#include "cpu/same_id.h"
#include "cpu/score_tiles.h"

namespace itm::cpu {
namespace {

// The inputs of the operator in the layout that the loops read.
struct Inputs {
  Tensor x, y, positive;
  SameId same;
  Groups pairs;  // grouped by image

  Inputs(const Tensor& image, const Tensor& text, const OptionalTensor& positive_of,
         const OptionalTensor& image_ids, const OptionalTensor& text_ids)
      : x(wide(image)),
        y(wide(text)),
        positive(positive_of.has_value() ? positive_of->contiguous()
                                         : at::arange(y.size(0), y.options().dtype(at::kLong))),
        same(image_ids, text_ids),
        pairs(positive.const_data_ptr<int64_t>(), y.size(0), x.size(0)) {}

  // Returns margin - s+ of every pair, NaN for texts without exactly one image.
  template <typename T>
  std::vector<T> offsets(double margin) const {
    const int64_t M = y.size(0), D = y.size(1);
    const auto& loop = loops<T>();
    const auto* of = positive.const_data_ptr<int64_t>();
    const T *from = x.const_data_ptr<T>(), *to = y.const_data_ptr<T>();
    std::vector<T> offset(M, std::numeric_limits<T>::quiet_NaN());
    parallel_for(0, M, grain(2 * D), [&](int64_t j0, int64_t j1) {
      for (int64_t j = j0; j < j1; ++j)
        if (of[j] >= 0)
          offset[j] = static_cast<T>(margin - loop.product(from + of[j] * D, to + j * D, D));
    });
    return offset;
  }
};

std::tuple<Tensor, Tensor> sum_of_hinges_forward(const Tensor& image, const Tensor& text,
                                                 const OptionalTensor& positive,
                                                 const OptionalTensor& image_ids,
                                                 const OptionalTensor& text_ids, double margin,
                                                 bool keep_scores) {
  const Inputs in(image, text, positive, image_ids, text_ids);
  const Tensor kept = scores_to_keep(keep_scores, in.x, in.y);
  Tensor loss = at::empty({in.y.size(0)}, in.y.options());
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "sum_of_hinges_forward", [&] {
    const std::vector<scalar_t> offset = in.offsets<scalar_t>(margin);
    std::vector<double> sum = first_sums(offset);
    auto add = [&](const Tile<scalar_t>& t) {
      exclude(t, in.same);
      add_hinges(t, in.pairs, offset, sum);
    };
    for_each_tile<scalar_t>(in.x, in.y, 1, add, if_kept(kept));
    std::copy(sum.begin(), sum.end(), loss.mutable_data_ptr<scalar_t>());
  });
  return {loss, kept};
}

// Accumulates the gradients of the positive scores: adds of_positive[j] times each row of pair j to
// the gradient of the other.
template <typename T>
void add_positive_gradients(const Inputs& in, const std::vector<T>& of_positive, Tensor& grad_x,
                            Tensor& grad_y) {
  const int64_t N = in.x.size(0), M = in.y.size(0), D = in.x.size(1);
  const auto& loop = loops<T>();
  const auto* of = in.positive.const_data_ptr<int64_t>();
  const T *x = in.x.const_data_ptr<T>(), *y = in.y.const_data_ptr<T>();
  T *to_x = grad_x.mutable_data_ptr<T>(), *to_y = grad_y.mutable_data_ptr<T>();
  parallel_for(0, M, grain(2 * D), [&](int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; ++j)
      if (of[j] >= 0) loop.add_rows(to_y + j * D, x, of + j, &of_positive[j], 1, D);
  });
  parallel_for(0, N, grain(2 * D), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t first = in.pairs.start[i];
      accumulate_rows(
          in.pairs.start[i + 1] - first, to_x + i * D, D, [&](int64_t begin, int64_t end, T* out) {
            for (int64_t k = first + begin; k < first + end; ++k)
              loop.add_rows(out, y, &in.pairs.order[k], &of_positive[in.pairs.order[k]], 1, D);
          });
    }
  });
}

std::tuple<Tensor, Tensor> sum_of_hinges_backward(const Tensor& grad, const Tensor& scores,
                                                  const Tensor& image, const Tensor& text,
                                                  const OptionalTensor& positive,
                                                  const OptionalTensor& image_ids,
                                                  const OptionalTensor& text_ids, double margin) {
  const Inputs in(image, text, positive, image_ids, text_ids);
  const Tensor g = grad.to(in.x.scalar_type()).contiguous();
  Tensor grad_x, grad_y;
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "sum_of_hinges_backward", [&] {
    const std::vector<scalar_t> offset = in.offsets<scalar_t>(margin);
    const auto* of_loss = g.const_data_ptr<scalar_t>();
    std::vector<double> active(offset.size());  // positive hinges of every pair
    auto to_gradient = [&](const Tile<scalar_t>& t) {
      if (!scores.numel()) exclude(t, in.same);
      to_hinge_gradient(t, in.pairs, offset, of_loss, active);
    };
    std::tie(grad_x, grad_y) =
        tiled_products_gradient<scalar_t>(in.x, in.y, 1, scores, to_gradient);
    const std::vector<scalar_t> of_positive = positive_gradients(active, of_loss);
    add_positive_gradients(in, of_positive, grad_x, grad_y);
  });
  return {grad_x.to(image.scalar_type()), grad_y.to(text.scalar_type())};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("sum_of_hinges_forward", sum_of_hinges_forward);
  m.impl("sum_of_hinges_backward", sum_of_hinges_backward);
}

}  // namespace
}  // namespace itm::cpu
