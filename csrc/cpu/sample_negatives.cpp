// One mined negative per anchor in both directions by the Gumbel-max trick: noise is generated for
// each tile of scores (cpu/simd/philox.h defines it), and the sample is the index of the largest
// sum of score and noise. The hardest negatives are those of max of hinges.

#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <string_view>

#include "cpu/hardest_negatives.h"

namespace itm::cpu {
namespace {

// Returns the indices of the largest alpha s + temperature noise of each row and column.
template <typename T>
std::tuple<Tensor, Tensor> sample(const Tensor& x, const Tensor& y, const SameId& same,
                                  double alpha, double temperature, const simd::Seed& seed) {
  const RunningMaximum text(x.size(0), x.options()), image(y.size(0), y.options());
  const auto& loop = loops<T>();
  T* value = text.values<T>();
  int64_t* index = text.indices();
  for_each_tile<T>(x, y, alpha, [&](const Tile<T>& t) {
    exclude(t, same);
    parallel_for(0, t.rows, grain(16 * t.columns), [&](int64_t r0, int64_t r1) {
      std::vector<T> noisy(t.columns);
      for (int64_t i = t.first_row + r0; i < t.first_row + r1; ++i) {
        loop.add_gumbel(t.row(i - t.first_row), t.columns, static_cast<uint32_t>(i), t.first_column,
                        static_cast<T>(temperature), seed, noisy.data());
        loop.row_max(noisy.data(), t.columns, 0, 1, t.first_column, value + i, index + i);
      }
    });
    update_columns(t, image);
  });
  default_to_first_negative(text, image, same);
  return {text.index, image.index};
}

std::tuple<Tensor, Tensor> sample_negatives(const Tensor& image, const Tensor& text,
                                            const OptionalTensor& image_ids,
                                            const OptionalTensor& text_ids,
                                            std::string_view strategy, double temperature,
                                            const Tensor& seed) {
  const SameId same(image_ids, text_ids);
  if (strategy == "hardest") {
    const Tensor x = wide(image), y = wide(text);
    return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sample_negatives", [&] {
      const auto found = hardest_negatives<scalar_t>(x, y, nullptr, same);
      return std::make_tuple(found.row.index, found.column.index);
    });
  }
  const bool uniform = strategy == "uniform";
  // Products of zero columns give equal scores without reading the rows.
  const Tensor x =
      uniform ? at::zeros({image.size(0), 1}, image.options().dtype(at::kFloat)) : wide(image);
  const Tensor y = uniform ? at::zeros({text.size(0), 1}, x.options()) : wide(text);
  const Tensor words = seed.contiguous();
  const auto* word = words.const_data_ptr<int64_t>();
  const simd::Seed noise(static_cast<uint64_t>(word[0]), static_cast<uint64_t>(word[1]));
  // s / t + noise and s + t noise have their maxima at the same indices. The form is chosen so that
  // neither t nor 1 / t leaves the range of fp32.
  const bool divide = !uniform && temperature > 1;
  const double alpha = divide ? 1 / temperature : 1, scale = divide || uniform ? 1 : temperature;
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sample_negatives", [&] {
    return sample<scalar_t>(x, y, same, alpha, scale, noise);
  });
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) { m.impl("sample_negatives", sample_negatives); }

}  // namespace
}  // namespace itm::cpu
