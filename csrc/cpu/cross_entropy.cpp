// Cross-entropy of positives among negatives whose exponentials are already summed: one loop over
// the pairs of a batch in each direction, where PyTorch runs a dozen operations on short vectors.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "aten/wide.h"
#include "cpu/parallel.h"

namespace itm::cpu {
namespace {

// The terms of a softmax relative to the positive, whose term is e^0: the highest exponent, and the
// sum of all other terms divided by the highest. A small loss is log(1 + others), to full
// precision.
template <typename T>
struct Terms {
  const T *negatives, *bases;  // columns of [K, M]: log-sums, and the maxima they are relative to
  const int64_t K, M;
  const T positive;
  T highest = 0, others = 0;

  Terms(const T* from, const T* bases, int64_t K, int64_t M, T positive)
      : negatives(from), bases(bases), K(K), M(M), positive(positive) {
    for (int64_t k = 0; k < K; ++k) highest = std::max(highest, exponent(k));  // max skips NaN
    bool left_out = highest == 0;
    if (!left_out) others = std::exp(-highest);
    for (int64_t k = 0; k < K; ++k) {
      if (!left_out && exponent(k) == highest)
        left_out = true;
      else
        others += term(k);
    }
  }
  // The difference is taken first: it is exact for two close logits.
  T exponent(int64_t k) const { return negatives[k * M] + (bases[k * M] - positive); }
  // An infinite exponent minus itself would be NaN.
  T term(int64_t k) const {
    return exponent(k) == highest ? T(1) : std::exp(exponent(k) - highest);
  }
  T log_sum() const { return highest + std::log1p(others); }
  T probability(int64_t k) const { return term(k) / (1 + others); }
};

// Calls work(m) for every pair, in parallel.
template <typename Work>
void for_each_pair(const Tensor& negatives, Work&& work) {
  const int64_t M = negatives.size(2), exponentials = 16;  // cost in additions
  parallel_for(0, M, grain(exponentials * negatives.size(0) * negatives.size(1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t m = begin; m < end; ++m) work(m);
               });
}

Tensor cross_entropy_forward(const Tensor& positives, const Tensor& sums, const Tensor& highest,
                             double weight) {
  const Tensor positive = positives.contiguous(), negatives = sums.contiguous();
  const Tensor bases = highest.contiguous();
  const int64_t S = negatives.size(0), K = negatives.size(1), M = negatives.size(2);
  Tensor loss = at::empty({M}, positive.options());
  AT_DISPATCH_FLOATING_TYPES(positive.scalar_type(), "cross_entropy_forward", [&] {
    const auto *own = positive.const_data_ptr<scalar_t>(),
               *from = negatives.const_data_ptr<scalar_t>(),
               *base = bases.const_data_ptr<scalar_t>();
    auto* to = loss.mutable_data_ptr<scalar_t>();
    for_each_pair(negatives, [&](int64_t m) {
      scalar_t sum = 0;
      for (int64_t s = 0; s < S; ++s)
        sum += Terms<scalar_t>(from + s * K * M + m, base + s * K * M + m, K, M, own[m]).log_sum();
      // Makes the loss NaN if the positive is infinite.
      to[m] = static_cast<scalar_t>(weight) * sum + 0 * own[m];
    });
  });
  return loss;
}

std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad, const Tensor& positives,
                                                  const Tensor& sums, const Tensor& highest,
                                                  double weight) {
  const Tensor positive = positives.contiguous(), negatives = sums.contiguous();
  const Tensor bases = highest.contiguous();
  const Tensor grads = grad.contiguous();
  const int64_t S = negatives.size(0), K = negatives.size(1), M = negatives.size(2);
  Tensor of_positive = at::empty({M}, positive.options());
  Tensor of_negatives = at::empty({S, K, M}, positive.options());
  AT_DISPATCH_FLOATING_TYPES(positive.scalar_type(), "cross_entropy_backward", [&] {
    const auto *own = positive.const_data_ptr<scalar_t>(),
               *of_loss = grads.const_data_ptr<scalar_t>(),
               *from = negatives.const_data_ptr<scalar_t>(),
               *base = bases.const_data_ptr<scalar_t>();
    auto *to = of_positive.mutable_data_ptr<scalar_t>(),
         *to_negatives = of_negatives.mutable_data_ptr<scalar_t>();
    for_each_pair(negatives, [&](int64_t m) {
      scalar_t sum = 0;
      for (int64_t s = 0; s < S; ++s) {
        const int64_t at = s * K * M + m;
        const Terms<scalar_t> terms(from + at, base + at, K, M, own[m]);
        for (int64_t k = 0; k < K; ++k) {
          const scalar_t of_negative =
              static_cast<scalar_t>(weight) * of_loss[m] * terms.probability(k);
          to_negatives[at + k * M] = of_negative;
          sum += of_negative;
        }
      }
      to[m] = -sum;
    });
  });
  return {of_positive, of_negatives};
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("cross_entropy_forward", cross_entropy_forward);
  m.impl("cross_entropy_backward", cross_entropy_backward);
}

}  // namespace
}  // namespace itm::cpu
