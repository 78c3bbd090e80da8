#pragma once
// Tensors of the whole-loss contrastive operators: cosines in parts, a scale that is a number or a
// tensor, the results of a fold, and the gradients of rows.

#include "cuda/small_batch/contrastive.h"
#include "cuda/small_batch/dot_products_binding.h"

namespace itm::cuda {

// A number, or a tensor in the precision of the scores.
struct GivenTensor {
  const OptionalTensor tensor;
  const double value;

  GivenTensor(const OptionalTensor& given, double value, const Tensor& like)
      : tensor(given.has_value() ? OptionalTensor(given->to(wide_type(like))) : given),
        value(value) {}
  Given at() const { return {tensor.has_value() ? tensor->const_data_ptr() : nullptr, value}; }
};

struct StoredCosines {
  const Tensor x, y;  // in fours
  const StoredProducts products;
  const bool cosine;

  StoredCosines(const OnDevice& device, const Tensor& image, const Tensor& text, bool cosine)
      : x(in_fours(image.unsqueeze(0))),
        y(in_fours(text.unsqueeze(0))),
        products(device, {{x, y}}, cosine),
        cosine(cosine) {}

  CosineParts from() const {
    if (!cosine) return {products.from[0]};
    return {products.from[0], products.x_squares.const_data_ptr(),
            products.y_squares.const_data_ptr()};
  }
};

// Results of a forward pass; it stores `width` numbers for every row.
struct ContrastResult {
  Tensor total, of_scale, of_bias, scores, anchors, of_anchors;
  ContrastOut to;

  ContrastResult(const StoredCosines& cosines, double weight, bool keep, int64_t width) {
    const int64_t N = cosines.products.from[0].N, M = cosines.products.from[0].M;
    const auto room = [&](at::IntArrayRef shape) {
      return at::empty(shape, cosines.products.parts[0].options());
    };
    total = room({}), of_scale = room({}), of_bias = room({});
    scores = room({keep ? N : 0, keep ? M : 0});
    anchors = room({N + M, width}), of_anchors = room({3, std::max(N, M)});
    to = {weight,
          cosines.products.counter(),
          total.mutable_data_ptr(),
          of_scale.mutable_data_ptr(),
          of_bias.mutable_data_ptr(),
          keep ? scores.mutable_data_ptr() : nullptr,
          anchors.mutable_data_ptr(),
          of_anchors.mutable_data_ptr()};
  }
};

// Results of a forward pass, contiguous and aligned to 16 bytes, as kernels read them.
inline Tensor as_left(const Tensor& numbers) {
  const Tensor whole = numbers.contiguous();
  return reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % 16 ? whole.clone() : whole;
}

// Operands and results of a backward pass.
struct ContrastRows {
  const Tensor grad, scores, anchors, x, y;  // x and y in fours
  Tensor to_x, to_y, to_scale, to_bias;

  ContrastRows(const Tensor& grad, const Tensor& scores, const Tensor& anchors, const Tensor& image,
               const Tensor& text)
      : grad(grad.to(wide_type(image))),
        scores(as_left(scores)),
        anchors(as_left(anchors)),
        x(in_fours(image.unsqueeze(0))),
        y(in_fours(text.unsqueeze(0))),
        to_x(at::empty(image.sizes(), image.options())),
        to_y(at::empty(text.sizes(), text.options())),
        to_scale(at::empty({}, this->grad.options())),
        to_bias(at::empty({}, this->grad.options())) {}

  ContrastGradient from(const Tensor& of_scale, const Tensor& of_bias, double weight,
                        bool cosine) const {
    return {grad.const_data_ptr(),
            of_scale.const_data_ptr(),
            of_bias.const_data_ptr(),
            scores.const_data_ptr(),
            anchors.const_data_ptr(),
            weight,
            cosine,
            {matrix_of(x), matrix_of(y), to_x.size(1), to_x.mutable_data_ptr(),
             to_y.mutable_data_ptr()},
            to_scale.mutable_data_ptr(),
            to_bias.mutable_data_ptr()};
  }
};

}  // namespace itm::cuda
