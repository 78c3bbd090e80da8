// Max of hinges and hardest negatives: row and column maxima over tiles of scores, which are never
// stored as a matrix.

#include "cpu/max_of_hinges.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/accumulate_rows.h"
#include "cpu/groups.h"

namespace itm::cpu {
namespace {

// A sparse sum of rows: grad[target] += weight * source_rows[source], for the entries of a target
// in the order in which they were added. One thread computes each target, without atomics, so that
// the result has the same bits for any number of threads.
template <typename T>
class SparseRowSum {
 public:
  explicit SparseRowSum(int64_t most) {
    target_.reserve(most), source_.reserve(most), weight_.reserve(most);
  }

  void add(int64_t target, int64_t source, T weight) {
    target_.push_back(target), source_.push_back(source), weight_.push_back(weight);
  }

  Tensor sum(int64_t targets, const Tensor& source_rows) const {
    const int64_t D = source_rows.size(1), entries = static_cast<int64_t>(target_.size());
    Tensor grad = at::empty({targets, D}, source_rows.options());
    const Groups groups(target_.data(), entries, targets);
    std::vector<int64_t> source(entries);
    std::vector<T> weight(entries);
    for (int64_t k = 0; k < entries; ++k) {
      source[k] = source_[groups.order[k]];
      weight[k] = weight_[groups.order[k]];
    }
    const T* rows = source_rows.const_data_ptr<T>();
    T* out = grad.template mutable_data_ptr<T>();
    const auto& loop = loops<T>();
    parallel_for(0, targets, grain(4 * D), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t k = groups.start[g], count = groups.start[g + 1] - k;
        std::fill_n(out + g * D, D, T(0));
        accumulate_rows(count, out + g * D, D, [&](int64_t first, int64_t last, T* to) {
          loop.add_rows(to, rows, source.data() + k + first, weight.data() + k + first,
                        last - first, D);
        });
      }
    });
    return grad;
  }

 private:
  std::vector<int64_t> target_, source_;
  std::vector<T> weight_;
};

// The nonzero entries of the gradient of the scores, each accumulated on its image and its text.
template <typename T>
struct SparseScoreGradient {
  SparseRowSum<T> image, text;

  explicit SparseScoreGradient(int64_t most) : image(most), text(most) {}

  void add(int64_t i, int64_t j, T weight) {
    image.add(i, j, weight);
    text.add(j, i, weight);
  }

  std::tuple<Tensor, Tensor> sum(const Tensor& image_rows, const Tensor& text_rows,
                                 at::ScalarType dtype) const {
    return {image.sum(image_rows.size(0), text_rows).to(dtype),
            text.sum(text_rows.size(0), image_rows).to(dtype)};
  }
};

std::tuple<Tensor, Tensor, Tensor> max_of_hinges_forward(const Tensor& image, const Tensor& text,
                                                         const OptionalTensor& positive,
                                                         const OptionalTensor& image_ids,
                                                         const OptionalTensor& text_ids,
                                                         double margin, bool is_semihard) {
  const Tensor x = wide(image), y = wide(text);
  const SameId same(image_ids, text_ids);
  const int64_t* positive_of = ids_or_null(positive);
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "max_of_hinges_forward", [&] {
    if (!is_semihard)
      return hinges_of<scalar_t>(hardest_negatives<scalar_t>(x, y, positive_of, same), positive_of,
                                 margin);
    HardestNegatives found(x, y);
    find_semihard<scalar_t>(found, positive_of, same,
                            [&](auto&& visit) { for_each_tile<scalar_t>(x, y, 1, visit); });
    return hinges_of<scalar_t>(found, nullptr, margin);
  });
}

std::tuple<Tensor, Tensor> max_of_hinges_backward(const Tensor& grad, const Tensor& image,
                                                  const Tensor& text,
                                                  const OptionalTensor& positive,
                                                  const Tensor& text_index,
                                                  const Tensor& image_index) {
  const Tensor x = wide(image), y = wide(text), g = grad.to(x.scalar_type()).contiguous();
  const int64_t M = y.size(0);
  const int64_t* positive_of = ids_or_null(positive);
  const int64_t* hardest_text = text_index.const_data_ptr<int64_t>();
  const int64_t* hardest_image = image_index.const_data_ptr<int64_t>();
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "max_of_hinges_backward", [&] {
    SparseScoreGradient<scalar_t> gradients(3 * M);
    const scalar_t* of_loss = g.const_data_ptr<scalar_t>();
    for (int64_t j = 0; j < M; ++j) {
      const int64_t i = positive_of ? positive_of[j] : j;
      const int active = (hardest_text[j] >= 0) + (hardest_image[j] >= 0);
      const bool nan = hardest_text[j] == kNan;
      if (!(active || nan) || i < 0) continue;
      if (hardest_text[j] >= 0) gradients.add(i, hardest_text[j], of_loss[j]);
      if (hardest_image[j] >= 0) gradients.add(hardest_image[j], j, of_loss[j]);
      gradients.add(i, j, nan ? std::numeric_limits<scalar_t>::quiet_NaN() : -of_loss[j] * active);
    }
    return gradients.sum(x, y, image.scalar_type());
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> hardest_negatives_forward(
    const Tensor& image, const Tensor& text, const OptionalTensor& positive,
    const OptionalTensor& image_ids, const OptionalTensor& text_ids) {
  const Tensor x = wide(image), y = wide(text);
  const SameId same(image_ids, text_ids);
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "hardest_negatives_forward", [&] {
    auto found = hardest_negatives<scalar_t>(x, y, ids_or_null(positive), same);
    const auto& [positive_score, row, column] = found;
    return std::make_tuple(positive_score, row.value, row.index, column.value, column.index);
  });
}

std::tuple<Tensor, Tensor> hardest_negatives_backward(
    const Tensor& grad_positive, const Tensor& grad_text, const Tensor& grad_image,
    const Tensor& image, const Tensor& text, const OptionalTensor& positive,
    const Tensor& text_index, const Tensor& image_index) {
  const Tensor x = wide(image), y = wide(text);
  const int64_t N = x.size(0), M = y.size(0);
  const int64_t* positive_of = ids_or_null(positive);
  const int64_t* hardest_text = text_index.const_data_ptr<int64_t>();
  const int64_t* hardest_image = image_index.const_data_ptr<int64_t>();
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "hardest_negatives_backward", [&] {
    const Tensor grads[] = {grad_positive.to(x.scalar_type()).contiguous(),
                            grad_text.to(x.scalar_type()).contiguous(),
                            grad_image.to(x.scalar_type()).contiguous()};
    const scalar_t* of_positive = grads[0].const_data_ptr<scalar_t>();
    const scalar_t* of_text = grads[1].const_data_ptr<scalar_t>();
    const scalar_t* of_image = grads[2].const_data_ptr<scalar_t>();
    SparseScoreGradient<scalar_t> gradients(N + 2 * M);
    for (int64_t i = 0; i < N; ++i)
      if (hardest_text[i] >= 0) gradients.add(i, hardest_text[i], of_text[i]);
    for (int64_t j = 0; j < M; ++j) {
      const int64_t i = positive_of ? positive_of[j] : j;
      if (i >= 0) gradients.add(i, j, of_positive[j]);
      if (hardest_image[j] >= 0) gradients.add(hardest_image[j], j, of_image[j]);
    }
    return gradients.sum(x, y, image.scalar_type());
  });
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("max_of_hinges_forward", max_of_hinges_forward);
  m.impl("max_of_hinges_backward", max_of_hinges_backward);
  m.impl("hardest_negatives_forward", hardest_negatives_forward);
  m.impl("hardest_negatives_backward", hardest_negatives_backward);
}

}  // namespace
}  // namespace itm::cpu
