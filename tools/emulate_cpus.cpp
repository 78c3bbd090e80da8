// Prints the results of every loop on fixed inputs, for every instruction set of this CPU, in lines
// "set type loop numbers". tools/emulate_cpus.py compares emulated CPUs with this one.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <type_traits>
#include <vector>

#include "cpu/simd/loop_table.h"

namespace {

using itm::simd::LoopTable;

constexpr int64_t kRows = 37, kColumns = 133, kWidth = 45;  // ragged for every vector length
constexpr int64_t kWords = (kColumns + 31) / 32;

// Numbers between -1 and 1 that are the same on every machine; some are equal.
template <typename T>
std::vector<T> draw(int64_t size, uint32_t seed) {
  std::vector<T> x(size);
  for (T& value : x) {
    seed = 1664525 * seed + 1013904223;
    value = static_cast<T>(static_cast<int32_t>(seed) >> 20) / 2048;
  }
  return x;
}

template <typename T>
class Report {
 public:
  explicit Report(const LoopTable& table)
      : table_(table), loop_(itm::simd::loops<T>(table)), tile_(draw<T>(kRows * kColumns, 1)) {}

  void all() {
    maxima();
    sums();
    bands();
    rows();
    distances();
    attention(9), attention(40);
  }

 private:
  const LoopTable& table_;
  const itm::simd::Loops<T>& loop_;
  const std::vector<T> tile_;

  template <typename Values>
  void emit(const char* name, const Values& values) const {
    double sum = 0, squares = 0;  // weighted by position
    for (size_t k = 0; k < values.size(); ++k) {
      const double value = static_cast<double>(values[k]);
      sum += value * static_cast<double>(k % 7 + 1);
      squares += value * value * static_cast<double>(k % 5 + 1);
    }
    std::printf("%s %s %s %.9g %.9g\n", table_.instruction_set,
                std::is_same_v<T, float> ? "float" : "double", name, sum, squares);
  }

  void maxima() const {
    std::vector<T> best(kColumns, -9), row(kRows, -9);
    std::vector<int64_t> index(kColumns, -1), row_index(kRows, -1);
    const std::vector<T> limit = draw<T>(kColumns, 2);
    loop_.row_max(tile_.data(), kColumns, 0, kRows, 5, row.data(), row_index.data());
    emit("row_max", row), emit("row_max", row_index);
    loop_.column_max(tile_.data(), kRows, kColumns, 0, kColumns, 5, best.data(), index.data());
    emit("column_max", best), emit("column_max", index);
    best.assign(kColumns, -9), row.assign(kRows, -9);
    loop_.column_max_below(tile_.data(), kRows, kColumns, 0, kColumns, 5, limit.data(), best.data(),
                           index.data());
    emit("column_max_below", best), emit("column_max_below", index);
    for (int64_t r = 0; r < kRows; ++r)
      loop_.row_max_below(&tile_[r * kColumns], kColumns, 5, T(.3), &row[r], &row_index[r]);
    emit("row_max_below", row), emit("row_max_below", row_index);
    const auto counts = loop_.count_above(tile_.data(), kColumns, tile_[kColumns]);
    emit("count_above", std::vector<int64_t>{counts.above, counts.equal});
  }

  void sums() const {
    std::vector<T> m(kColumns, -9), shares(kColumns), weights = tile_;
    std::vector<double> l(kColumns), sum(kColumns);  // over a batch
    const std::vector<T> a = draw<T>(kRows, 3), b = draw<T>(kColumns, 4);
    loop_.row_exp_sum(tile_.data(), kColumns, 0, kRows, m.data(), l.data());
    emit("row_exp_sum", l);
    m.assign(kColumns, -9), l.assign(kColumns, 0);
    loop_.column_exp_sum(tile_.data(), kRows, kColumns, 0, kColumns, m.data(), l.data());
    emit("column_exp_sum", l);
    loop_.softmax_weights(weights.data(), kColumns, 0, kRows,
                          {a.data(), a.data(), a.data(), b.data(), b.data(), b.data()});
    emit("softmax_weights", weights);
    loop_.column_softplus_sum(tile_.data(), kRows, kColumns, 0, kColumns, sum.data());
    emit("column_softplus_sum", sum);
    weights = tile_;
    loop_.sigmoid_weights(weights.data(), kColumns, 0, kRows, b.data());
    emit("sigmoid_weights", weights);
    weights = tile_;
    loop_.softmax_row(weights.data(), b.data(), kColumns, T(3));
    loop_.softmax_gradient(&weights[kColumns], weights.data(), kColumns, T(3));
    emit("softmax_row and gradient", weights);
    sum.assign(kColumns, 0);
    loop_.column_hinge_sum(tile_.data(), kRows, kColumns, 0, kColumns, b.data(), sum.data());
    sum.push_back(loop_.row_hinge_sum(tile_.data(), kColumns, T(.2)));
    emit("hinge_sum", sum);
    weights.assign(kColumns, 0), l.assign(kColumns, 0);
    weights.push_back(loop_.row_hinge_weights(tile_.data(), weights.data(), kColumns, T(.2), T(3)));
    loop_.column_hinge_weights(tile_.data(), shares.data(), kColumns, b.data(), m.data());
    loop_.column_hinge_count(tile_.data(), kRows, kColumns, 0, kColumns, b.data(), l.data());
    emit("row_hinge_weights", weights), emit("column_hinge_weights", shares);
    emit("column_hinge_count", l);
  }

  void bands() const {
    const itm::simd::Band<T> band{T(-.4), T(.3), T(.5), T(-1)};
    const std::vector<T> b = draw<T>(kColumns, 5);
    std::vector<uint32_t> words(kWords), column_words(kColumns);
    std::vector<T> sum(kColumns), weights(kColumns), row(tile_.begin(), tile_.begin() + kColumns);
    sum[0] = loop_.band_row(tile_.data(), kColumns, band, words.data());
    loop_.band_columns(tile_.data(), kColumns, 32, kColumns, band, sum.data(), column_words.data());
    emit("band_row and columns", sum), emit("band_row", words), emit("band_columns", column_words);
    loop_.band_weights(words.data(), kColumns, T(2), b.data(), weights.data());
    emit("band_weights", weights);
    const std::vector<T> low(kColumns, T(-.1)), high(kColumns, T(.2)), norm(kColumns, T(4));
    loop_.relative_weights(row.data(), kColumns, 3,
                           {low.data(), high.data(), norm.data(), b.data(), b.data()});
    emit("relative_weights", row);
  }

  void rows() const {
    const std::vector<int64_t> listed = {3, 0, 30, 7, 3};
    std::vector<T> out(kColumns), unit(kColumns), noisy(tile_.begin(), tile_.begin() + kColumns);
    loop_.sum_of_rows(tile_.data(), kColumns, listed.data(), 5, out.data(), kColumns);
    emit("sum_of_rows", out);
    const T norm = loop_.unit_row(tile_.data(), unit.data(), kColumns);
    loop_.unit_gradient(&tile_[kColumns], unit.data(), norm, out.data(), kColumns);
    emit("unit_row", unit), emit("unit_gradient", out);
    emit("product", std::vector<double>{loop_.product(tile_.data(), &tile_[7], kColumns)});
    loop_.add_gumbel(noisy.data(), kColumns, 3, 4, T(.5), itm::simd::Seed(5, 6), out.data());
    emit("add_gumbel", noisy), emit("add_gumbel", out);
  }

  void distances() const {
    const std::vector<T> x = draw<T>(kRows * kWidth, 6), y = draw<T>(kRows * kWidth, 7);
    const std::vector<T> weight = draw<T>(kRows * kRows, 8);
    const std::vector<int64_t> listed = {3, 0, 30, 7, 3};
    const int64_t group = loop_.group_size(), panel = loop_.panel_size();
    std::vector<T> packed(group * kWidth), l1(kRows * kRows), squared(kRows * kRows), pairs(5);
    for (int64_t j = 0; j < kRows; j += group) {
      const int64_t columns = kRows - j < group ? kRows - j : group;
      loop_.pack_columns(&y[j * kWidth], columns, kWidth, packed.data());
      loop_.l1_rows(x.data(), kRows, packed.data(), kWidth, &l1[j], kRows, columns);
      loop_.squared_rows(x.data(), kRows, packed.data(), kWidth, &squared[j], kRows, columns);
    }
    loop_.squared_pairs(x.data(), y.data(), listed.data(), 5, kWidth, pairs.data());
    emit("l1_rows", l1), emit("squared_rows", squared), emit("squared_pairs", pairs);
    std::vector<T> out(kRows * kWidth);
    const T* w = weight.data();
    loop_.add_rows(out.data(), y.data(), listed.data(), w, 5, kWidth);
    emit("add_rows", out);
    loop_.add_differences(out.data(), x.data(), y.data(), listed.data(), w, 5, kWidth);
    emit("add_differences", out);
    loop_.add_signs(out.data(), x.data(), y.data(), listed.data(), w, 5, kWidth);
    emit("add_signs", out);
    loop_.add_all_differences(out.data(), x.data(), kRows, y.data(), w, kRows, kRows, kWidth);
    emit("add_all_differences", out);
    // Sums of panels: the number of columns is a multiple of the panel size of every set.
    constexpr int64_t kPanels = 32;
    const std::vector<T> left = draw<T>(kRows * kPanels, 9), right = draw<T>(kRows * kPanels, 10);
    std::vector<T> to_left(kRows * kPanels), to_right(kRows * kPanels);
    for (int64_t d = 0; d < kPanels; d += panel) {
      const auto pack = [&](const std::vector<T>& from) {
        std::vector<T> columns(kRows * panel);
        for (int64_t n = 0; n < kRows * panel; ++n)
          columns[n] = from[n / panel * kPanels + d + n % panel];
        return columns;
      };
      const std::vector<T> a = pack(left), b = pack(right);
      std::vector<T> to_a(kRows * panel), to_b(kRows * panel);
      loop_.add_sign_panels(a.data(), to_a.data(), kRows, b.data(), to_b.data(), kRows, w, kRows);
      loop_.add_sign_panels(a.data(), to_a.data(), kRows, b.data(), nullptr, kRows, w, kRows);
      for (int64_t n = 0; n < kRows * panel; ++n) {
        to_left[n / panel * kPanels + d + n % panel] = to_a[n];
        to_right[n / panel * kPanels + d + n % panel] = to_b[n];
      }
    }
    emit("add_sign_panels", to_left), emit("add_sign_panels", to_right);
  }

  // With a large `smooth` a maximum is subtracted from exponents.
  void attention(T smooth) const {
    using A = itm::simd::Attention<T>;
    constexpr int64_t kPadded = (kRows + A::kRows - 1) / A::kRows * A::kRows, kStride = 160;
    const int64_t first[] = {0, 40, 100, kColumns};
    const std::vector<T> x = draw<T>(kRows * kWidth, 12), y = draw<T>(kColumns * kWidth, 13);
    std::vector<T> s(kRows * kColumns), gram(kRows * kPadded), norms(kColumns), own(kColumns);
    std::vector<double> exact(kRows * kRows), of_gram(kRows * kRows), numbers(3 * kRows);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kColumns; ++c)
        s[r * kColumns + c] = static_cast<T>(loop_.product(&x[r * kWidth], &y[c * kWidth], kWidth));
      for (int64_t c = 0; c < kRows; ++c) {
        exact[r * kRows + c] = loop_.product(&x[r * kWidth], &x[c * kWidth], kWidth);
        gram[r * kPadded + c] = static_cast<T>(exact[r * kRows + c]);
      }
    }
    for (int64_t c = 0; c < kColumns; ++c)
      norms[c] = static_cast<T>(std::sqrt(loop_.product(&y[c * kWidth], &y[c * kWidth], kWidth)));
    std::vector<T> memory((2 * kPadded + A::kColumns) * kStride + 6 * kRows);
    // With such bounds of cancelling entries some columns are computed in fp64.
    const A a{.clipped = true,
              .over_query = itm::simd::OverQuery::kNorm,
              .smooth = smooth,
              .rows = kRows,
              .gram = gram.data(),
              .exact_gram = exact.data(),
              .largest = T(25),
              .row = T(80),
              .first = first,
              .queries = 3,
              .columns = kColumns,
              .query_norm = norms.data(),
              .context_rows = x.data(),
              .query_rows = y.data(),
              .width = kWidth,
              .stride = kStride,
              .alpha = memory.data(),
              .attended = &memory[kPadded * kStride],
              .over = &memory[(2 * kPadded + A::kColumns) * kStride],
              .exact = numbers.data(),
              .of_columns = &memory[2 * kPadded * kStride]};
    const int64_t again = loop_.attend(a, s.data(), kColumns);
    emit("attend", std::vector<T>(a.cosine(), a.cosine() + kColumns));
    emit("attend in fp64", std::vector<int64_t>{again});
    for (int64_t c = 0; c < kColumns; ++c) a.of_cosine()[c] = tile_[c];
    std::vector<T> of_s(s.size());
    loop_.attention_gradient(a, s.data(), kColumns, of_s.data(), kColumns, own.data(),
                             of_gram.data());
    emit("attention_gradient", of_s), emit("attention_gradient", own);
    for (int64_t r = 0; r < kRows; ++r)  // what is below the diagonal is not defined
      std::fill_n(&of_gram[r * kRows], r, 0.);
    emit("attention_gradient", of_gram);
  }
};

void emit_screen(const LoopTable& table) {
  const auto emit = [&](const char* name, double value) {
    std::printf("%s bf16 %s %.9g\n", table.instruction_set, name, value);
  };
  const std::vector<float> x = draw<float>(kRows * kColumns, 11);
  std::vector<uint16_t> half(kRows * kColumns);
  double squares[2], sum = 0;
  table.screen.round_row(x.data(), kRows * kColumns, half.data(), squares);
  emit("round_row", squares[0] + squares[1]);
  std::vector<float> best(kColumns, -9), limit(kColumns, .9f);
  std::vector<int32_t> found(kColumns);
  emit("row_max", table.screen.row_max(half.data(), kColumns, -9));
  table.screen.column_max(half.data(), kRows, kColumns, kColumns, best.data());
  for (float value : best) sum += value;
  emit("column_max", sum);
  int64_t hits = table.screen.row_above(half.data(), kColumns, .9f, found.data());
  for (int64_t k = 0; k < hits; ++k) sum += found[k];
  hits = table.screen.columns_above(half.data(), kColumns, limit.data(), found.data());
  for (int64_t k = 0; k < hits; ++k) sum += found[k];
  emit("row_above, columns_above", sum);
  const uint32_t words[] = {0, 1, 123456789, 0xffffffff};
  float noise[4];
  table.gumbel(words, noise, 4);
  for (float value : noise) emit("gumbel", value);
}

}  // namespace

int main() {
  for (const LoopTable* table : itm::simd::kLoopTables) {
    if (!table->runs_here()) continue;
    Report<float>(*table).all();
    Report<double>(*table).all();
    emit_screen(*table);
  }
}
