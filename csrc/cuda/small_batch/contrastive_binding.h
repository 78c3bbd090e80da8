#pragma once
// Tensors of the whole-loss contrastive operators: cosines in parts, a scale that is a number or a
// tensor, the results of a reduction, and the gradients of rows.

#include "cuda/small_batch/contrastive.h"
#include "cuda/small_batch/dot_products_binding.h"

namespace itm::cuda {

// A number, or a tensor in the precision of the scores.
struct ScalarTensor {
  const OptionalTensor tensor;
  const double value;

  ScalarTensor(const OptionalTensor& given, double value, const Tensor& like)
      : tensor(given.has_value() ? OptionalTensor(given->to(wide_type(like))) : given),
        value(value) {}
  Scalar at() const { return {tensor.has_value() ? tensor->const_data_ptr() : nullptr, value}; }
};

struct StoredCosines {
  const Tensor x, y;  // padded
  const StoredDotProducts products;
  const bool cosine;

  StoredCosines(const OnDevice& device, const Tensor& image, const Tensor& text, bool cosine)
      : x(pad_to_four(image.unsqueeze(0))),
        y(pad_to_four(text.unsqueeze(0))),
        products(device, {{x, y}}, cosine),
        cosine(cosine) {}

  CosineParts from() const {
    if (!cosine) return {products.from[0]};
    return {products.from[0], products.x_squares.const_data_ptr(),
            products.y_squares.const_data_ptr()};
  }
};

// Results of a forward pass, which stores `width` values per row.
struct ContrastiveTensors {
  Tensor total, of_scale, of_bias, scores, anchors, of_anchors;
  ContrastiveResult to;

  ContrastiveTensors(const StoredCosines& cosines, double weight, bool keep, int64_t width) {
    const int64_t N = cosines.products.from[0].N, M = cosines.products.from[0].M;
    const auto empty = [&](at::IntArrayRef shape) {
      return at::empty(shape, cosines.products.parts[0].options());
    };
    total = empty({}), of_scale = empty({}), of_bias = empty({});
    scores = empty({keep ? N : 0, keep ? M : 0});
    anchors = empty({N + M, width}), of_anchors = empty({3, std::max(N, M)});
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
inline Tensor contiguous_aligned(const Tensor& numbers) {
  const Tensor whole = numbers.contiguous();
  return reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % 16 ? whole.clone() : whole;
}

// Operands and results of a backward pass.
struct ContrastiveOperands {
  const Tensor grad, scores, anchors, x, y;  // x and y padded
  Tensor to_x, to_y, to_scale, to_bias;

  ContrastiveOperands(const Tensor& grad, const Tensor& scores, const Tensor& anchors,
                      const Tensor& image, const Tensor& text)
      : grad(grad.to(wide_type(image))),
        scores(contiguous_aligned(scores)),
        anchors(contiguous_aligned(anchors)),
        x(pad_to_four(image.unsqueeze(0))),
        y(pad_to_four(text.unsqueeze(0))),
        to_x(at::empty(image.sizes(), image.options())),
        to_y(at::empty(text.sizes(), text.options())),
        to_scale(at::empty({}, this->grad.options())),
        to_bias(at::empty({}, this->grad.options())) {}

  ContrastiveGradient from(const Tensor& of_scale, const Tensor& of_bias, double weight,
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
