// Bounded sums over the pairs of one modality, with the same bounds for every row. A pair counts
// for both of its rows, so that the tiles on and above the diagonal suffice. The backward pass
// needs one bit per pair.

#include "cpu/intra_modal.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <bit>
#include <utility>
#include <vector>

#include "cpu/accumulate_rows.h"

namespace itm::cpu {
namespace {

constexpr int64_t kWord = 32;  // pairs in a word of the mask

// If more than one in this many pairs is inside, a dense matrix of weights is faster than adding
// rows pair by pair: for cosines as the operand of a product, for l1 because the signs of a pair
// are computed once for both of its rows.
constexpr int64_t kPairsPerWeight = 4;

// Columns of a block of weights. Every block adds to the gradients of all of its rows.
constexpr int64_t kWeightColumns = 2048;

int64_t words_of(int64_t columns) { return (columns + kWord - 1) / kWord; }

// Excludes pairs that share an id, unless their key is NaN, which must reach the sum.
template <typename T>
void exclude_finite(const Tile<T>& t, const SameId& same) {
  for_each_same_id(t, same, [&](int64_t r, int64_t c) {
    T& key = t.row(r)[c];
    if (key == key) key = -std::numeric_limits<T>::infinity();
  });
}

// Adds the tile's rows to their sums and writes the bits of the pairs inside to words, `stride` per
// row.
template <typename T>
void add_to_rows(const Tile<T>& t, const simd::Band<T>& band, double* sum, uint32_t* words,
                 int64_t stride) {
  const auto& loop = loops<T>();
  parallel_for(0, t.rows, grain(t.columns), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      sum[r] += loop.band_row(t.row(r), t.columns, band, words + r * stride);
  });
}

// The same for columns [from, columns), whose bits form rows of the mask.
template <typename T>
void add_to_columns(const Tile<T>& t, int64_t from, const simd::Band<T>& band, double* sum,
                    uint32_t* mask, int64_t stride) {
  const auto& loop = loops<T>();
  parallel_for(from, t.columns, grain(t.rows), [&](int64_t c0, int64_t c1) {
    std::vector<T> total(c1 - c0);
    std::vector<uint32_t> words(c1 - c0);
    const auto flush = [&] {
      for (int64_t c = c0; c < c1; ++c) sum[c] += std::exchange(total[c - c0], T(0));
    };
    for (int64_t r = 0; r < t.rows; r += kWord) {
      if (r % kTileRows == 0) flush();  // bounds the chain of additions if threads make blocks tall
      loop.band_columns(t.row(r) + c0, t.columns, std::min(kWord, t.rows - r), c1 - c0, band,
                        total.data(), words.data());
      if (!mask) continue;
      uint32_t* to = mask + (t.first_column + c0) * stride + (t.first_row + r) / kWord;
      for (int64_t c = c0; c < c1; ++c) to[(c - c0) * stride] = words[c - c0];
    }
    flush();
  });
}

// Returns the sums of all rows. Writes the mask [N, words of N], unless it has no entries.
template <typename T>
Tensor band_sums(const Keys& keys, const SameId& same, const simd::Band<T>& band, Tensor& mask) {
  const int64_t N = keys.x.size(0), stride = words_of(N);
  const bool keep = mask.size(0) == N;
  auto* kept = reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<int32_t>());
  std::vector<uint32_t> unkept(keep ? 0 : keys.rows_at_once() * stride);
  std::vector<double> sum(N);
  keys.for_each_upper_tile<T>([&](const Tile<T>& t) {
    const bool diagonal = t.first_row == t.first_column;
    if (diagonal && keys.official)  // makes the sum of an infinite row, outside every band, NaN
      for (int64_t r = 0; r < t.rows; ++r) sum[t.first_row + r] += 0 * t.row(r)[r];
    exclude_finite(t, same);
    uint32_t* words = keep ? kept + t.first_row * stride : unkept.data();
    add_to_rows(t, band, &sum[t.first_row], words + t.first_column / kWord, stride);
    add_to_columns(t, diagonal ? t.rows : 0, band, &sum[t.first_column], keep ? kept : nullptr,
                   stride);
  });
  Tensor row = at::empty({N}, keys.x.options());
  std::copy(sum.begin(), sum.end(), row.mutable_data_ptr<T>());
  return row;
}

// The pairs of one row of the mask, with their weights.
template <typename T>
struct PairList {
  std::vector<int64_t> index;
  std::vector<T> weight;

  void read(const uint32_t* words, int64_t stride, T of_row, const T* of_columns) {
    index.clear(), weight.clear();
    for (int64_t w = 0; w < stride; ++w)
      for (uint32_t word = words[w]; word; word &= word - 1) {
        index.push_back(w * kWord + std::countr_zero(word));
        weight.push_back(of_row + of_columns[index.back()]);
      }
  }
};

// Accumulates the gradient of a block of rows pair by pair. d delta / dx is a sign for l1, (x - y)
// / delta for l2 (0 at 0) and 2 (x - y) for sqeuclidean.
template <typename T>
void accumulate_pairs(const Keys& keys, const uint32_t* words, int64_t first, int64_t rows,
                      const T* of_sums, T* out) {
  const Tensor& compared = keys.compared();
  const int64_t N = compared.size(0), D = compared.size(1), stride = words_of(N);
  const auto& loop = loops<T>();
  const auto add = keys.l1 ? loop.add_signs : loop.add_differences;
  const T* x = compared.const_data_ptr<T>();
  parallel_for(0, rows, grain(N * D / 16), [&](int64_t r0, int64_t r1) {
    PairList<T> pairs;
    std::vector<T> distance;
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t n = first + r;
      pairs.read(words + r * stride, stride, of_sums[n], of_sums);
      const int64_t count = static_cast<int64_t>(pairs.index.size());
      if (keys.l2) {
        distance.resize(count);
        loop.squared_pairs(x + n * D, x, pairs.index.data(), count, D, distance.data());
        for (int64_t k = 0; k < count; ++k)
          pairs.weight[k] = distance[k] == 0 ? T(0) : pairs.weight[k] / std::sqrt(distance[k]);
      } else if (!keys.l1 && !keys.product) {
        for (T& weight : pairs.weight) weight *= 2;
      }
      accumulate_rows(count, out + n * D, D, [&](int64_t begin, int64_t end, T* to) {
        const int64_t* index = pairs.index.data() + begin;
        const T* weight = pairs.weight.data() + begin;
        if (keys.product)
          loop.add_rows(to, x, index, weight, end - begin, D);
        else
          add(to, x + n * D, x, index, weight, end - begin, D);
      });
    }
  });
}

// Writes weights [rows, columns]: the sum of the gradients of both rows for pairs of the mask, 0
// for the others.
template <typename T>
void fill_weights(const uint32_t* words, int64_t stride, int64_t rows, int64_t columns,
                  const T* of_rows, const T* of_columns, T* weights) {
  const auto& loop = loops<T>();
  parallel_for(0, rows, grain(columns), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      loop.band_weights(words + r * stride, columns, of_rows[r], of_columns, weights + r * columns);
  });
}

// The same as a product of the weights with all rows, tile by tile; for cosines in a dense band.
template <typename T>
void accumulate_product(const Keys& keys, const uint32_t* words, int64_t first, int64_t rows,
                        const T* of_sums, Tensor& out) {
  const Tensor& compared = keys.compared();
  const int64_t N = compared.size(0), stride = words_of(N);
  const int64_t most = std::min(N, kWeightColumns);
  const Tensor buffer = at::empty({rows * most}, compared.options());
  T* weights = buffer.mutable_data_ptr<T>();
  Tensor own = out.narrow(0, first, rows);
  for (int64_t j = 0; j < N; j += most) {
    const int64_t columns = std::min(most, N - j);
    fill_weights(words + j / kWord, stride, rows, columns, of_sums + first, of_sums + j, weights);
    const Tensor W = buffer.narrow(0, 0, rows * columns).view({rows, columns});
    own.addmm_(W, compared.narrow(0, j, columns));
  }
}

// The same for l1 in a dense band, for all pairs of a batch of at most D rows.
template <typename T>
void accumulate_signs(const Keys& keys, const uint32_t* mask, const T* of_sums, Tensor& out) {
  const int64_t N = keys.x.size(0), stride = words_of(N);
  const Tensor W = at::empty({N, N}, keys.x.options());
  fill_weights(mask, stride, N, N, of_sums, of_sums, W.mutable_data_ptr<T>());
  add_symmetric_signs<T>(W, keys.x, out);
}

int64_t pairs_in(const uint32_t* words, int64_t count) {
  int64_t pairs = 0;
  for (int64_t w = 0; w < count; ++w) pairs += std::popcount(words[w]);
  return pairs;
}

template <typename T>
Tensor band_gradient(const Keys& keys, const SameId& same, const simd::Band<T>& band,
                     const Tensor& grad, const Tensor& row, const Tensor& mask) {
  const int64_t N = keys.x.size(0), stride = words_of(N);
  const int64_t most = std::min(N, kKeyRows * at::get_num_threads());
  const bool kept = mask.size(0) == N;
  const auto* all = reinterpret_cast<const uint32_t*>(mask.const_data_ptr<int32_t>());
  std::vector<uint32_t> again(kept ? 0 : most * stride);
  std::vector<double> sum(kept ? 0 : most);
  // A sum adds offset + sign * delta, and the delta of a cosine decreases as its product increases.
  const Tensor scaled = grad.to(keys.x.scalar_type()).mul(keys.unit ? -band.sign : band.sign);
  const T* of_sums = scaled.const_data_ptr<T>();
  Tensor result = at::zeros_like(keys.x);
  const bool at_once =
      keys.l1 && kept && N <= keys.x.size(1) && pairs_in(all, N * stride) > N * N / kPairsPerWeight;
  if (at_once) accumulate_signs<T>(keys, all, of_sums, result);
  for (int64_t i = 0; i < N && !at_once; i += most) {
    const int64_t rows = std::min(most, N - i);
    const uint32_t* words = kept ? all + i * stride : again.data();
    if (!kept)
      keys.for_each_tile<T>(i, rows, 0, [&](const Tile<T>& t) {
        exclude_finite(t, same);
        add_to_rows(t, band, sum.data(), again.data() + t.first_column / kWord, stride);
      });
    const int64_t inside = pairs_in(words, rows * stride);
    if (keys.product && inside > rows * N / kPairsPerWeight)
      accumulate_product<T>(keys, words, i, rows, of_sums, result);
    else if (inside)
      accumulate_pairs<T>(keys, words, i, rows, of_sums, result.mutable_data_ptr<T>());
  }
  if (keys.l1) {
    // A pair whose difference is NaN is inside every band, but its sign would not be NaN.
    const int64_t D = keys.x.size(1);
    const T* x = keys.x.const_data_ptr<T>();
    if (!all_finite(x, N * D)) propagate_nan(x, N, x, N, D, result.mutable_data_ptr<T>());
  }
  // An infinite row is outside every band and its sum is NaN, so its gradient must be NaN too.
  if (keys.product && keys.official && !all_finite(row.const_data_ptr<T>(), N))
    result.add_(row.mul(0).unsqueeze(1));
  return keys.unit ? keys.directions->gradient(result) : result;
}

// Returns the band of keys whose deltas are summed; repel sums upper - delta.
template <typename T>
simd::Band<T> band_of(const Keys& keys, double low, double high) {
  return {static_cast<T>(low), static_cast<T>(high), keys.repel ? static_cast<T>(high) : T(0),
          keys.repel ? T(-1) : T(1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> intra_modal_forward(
    const Tensor& x, const OptionalTensor& ids, std::string_view metric, std::string_view mode,
    double lower, double upper, bool per_row, bool keep_mask) {
  const Keys keys(x, metric, mode);
  const int64_t N = x.size(0);
  Tensor mask =
      at::empty({keep_mask ? N : 0, keep_mask ? words_of(N) : 0}, x.options().dtype(at::kInt));
  if (keys.relative()) {
    const auto [row, low, high, norm] = relative_sums(keys, ids, lower, upper, per_row);
    return {row, low, high, norm, mask};
  }
  const bool scores = keys.official;  // keys are similarities, between upper and 1 - lower
  const double low = scores ? upper : lower, high = scores ? 1 - lower : upper;
  const SameId same(ids, ids);
  Tensor row;
  AT_DISPATCH_FLOATING_TYPES(keys.x.scalar_type(), "intra_modal_forward", [&] {
    row = band_sums<scalar_t>(keys, same, band_of<scalar_t>(keys, low, high), mask);
  });
  const auto like = keys.x.options();
  return {row, at::full({N}, low, like), at::full({N}, high, like), at::ones({N}, like), mask};
}

Tensor intra_modal_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& ids,
                            const Tensor& row, const Tensor& low, const Tensor& high,
                            const Tensor& norm, const Tensor& mask, std::string_view metric,
                            std::string_view mode) {
  const Keys keys(x, metric, mode);
  if (keys.relative())
    return relative_gradient(keys, grad, ids, row, low, high, norm).to(x.scalar_type());
  const SameId same(ids, ids);
  return AT_DISPATCH_FLOATING_TYPES(keys.x.scalar_type(), "intra_modal_backward", [&] {
    const auto *lowest = low.const_data_ptr<scalar_t>(), *highest = high.const_data_ptr<scalar_t>();
    const auto band = band_of<scalar_t>(keys, *lowest, *highest);
    return band_gradient<scalar_t>(keys, same, band, grad, row, mask).to(x.scalar_type());
  });
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) {
  m.impl("intra_modal_forward", intra_modal_forward);
  m.impl("intra_modal_backward", intra_modal_backward);
}

}  // namespace
}  // namespace itm::cpu
