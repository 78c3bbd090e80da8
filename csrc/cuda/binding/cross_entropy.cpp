// Cross-entropy of positives among negatives that are summed already, on CUDA: one launch each way.

#include "cuda/cross_entropy.h"

#include <ATen/ops/empty.h>

#include "cuda/binding/pairs.h"

namespace itm::cuda {
namespace {

// Logarithms without gaps.
struct Logarithms {
  const Tensor positive, negatives, bases;
  const double weight;

  Logarithms(const Tensor& positives, const Tensor& sums, const Tensor& highest, double weight)
      : positive(positives.contiguous()),
        negatives(sums.to(positives.scalar_type()).contiguous()),
        bases(highest.to(positives.scalar_type()).contiguous()),
        weight(weight) {}
  Softmaxes at() const {
    return {positive.const_data_ptr(),
            negatives.const_data_ptr(),
            bases.const_data_ptr(),
            negatives.size(0),
            negatives.size(1),
            negatives.size(2),
            weight};
  }
};

Tensor cross_entropy_forward(const Tensor& positive, const Tensor& negatives, const Tensor& highest,
                             double weight) {
  const OnDevice device(positive);
  const Logarithms in(positive, negatives, highest, weight);
  Tensor loss = at::empty(positive.sizes(), positive.options());
  cross_entropy(type_of(positive), in.at(), loss.mutable_data_ptr(), device.stream());
  device.launched();
  return loss;
}

std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad, const Tensor& positive,
                                                  const Tensor& negatives, const Tensor& highest,
                                                  double weight) {
  const OnDevice device(positive);
  const Logarithms in(positive, negatives, highest, weight);
  const RowNumbers numbers(grad, positive);
  Tensor of_positive = at::empty(positive.sizes(), positive.options());
  Tensor of_negatives = at::empty(negatives.sizes(), positive.options());
  cross_entropy_gradient(type_of(positive), in.at(), numbers.at(), of_positive.mutable_data_ptr(),
                         of_negatives.mutable_data_ptr(), device.stream());
  device.launched();
  return {of_positive, of_negatives};
}

TORCH_LIBRARY_IMPL(ITM_LIBRARY, ITM_KEY, m) {
  m.impl("cross_entropy_forward", cross_entropy_forward);
  m.impl("cross_entropy_backward", cross_entropy_backward);
}

}  // namespace
}  // namespace itm::cuda
