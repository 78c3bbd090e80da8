// Hardest negatives from bf16 products, which tensor units multiply several times faster, without
// bf16 errors: a rigorous bound says which pairs could be a maximum, and those alone are multiplied
// again, exactly.
//
// With x = h + l, h its rounding to bf16, the product that the library makes differs from x . y by
//   |l_x . y + h_x . l_y|             <= |l_x| |y| + |h_x| |l_y|             (what rounding lost)
//   + its sum in fp32                 <= D 2^-22 |h_x| |h_y|                 (D additions)
//   + what is too small for fp32      <= D 2^-124 (1 + |x| + |y|)            (flushed to 0)
//   + its own rounding to bf16        <= 2^-8 of itself.
// A row's pairs below its best by more than twice that cannot win. The others are kept, 16 to a
// row; the winner is the exact maximum, lowest index first, whatever the tiles, threads and
// instructions.

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>

#include "cpu/hardest_negatives.h"

namespace itm {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kMost = 16;        // pairs kept for a row
constexpr int64_t kPerRow = 1024;    // additions that a row's candidates cost
constexpr double kSummed = 0x1p-22;  // 4 units in the last place for each of D additions
constexpr double kFlushed = 0x1p-124;
constexpr double kRounded = 0x1p-8;  // twice the rounding of a score to bf16
constexpr double kLargest = 0x1p60;  // of a row: products of two stay finite
// Against products in fp32, screening takes .7 of the time at 128 rows of 1,024, .8 at 256 of 256,
// .9 at 128 of 512, 1.0 at 192 of 256 and 1.2 at 128 of 256 or 64 of 1,024.
constexpr int64_t kLeastRows = 128, kLeastTerms = 256, kLeastElements = 128 * 512;

// Rows in bf16, and the lengths of what they were, are and lost.
struct Rounded {
  Tensor half;
  std::vector<double> whole, kept, lost;
  double most_whole = 0, most_kept = 0, most_lost = 0;
  bool usable = true;

  explicit Rounded(const Tensor& x)
      : half(at::empty(x.sizes(), x.options().dtype(at::kBFloat16))),
        whole(x.size(0)),
        kept(x.size(0)),
        lost(x.size(0)) {
    const int64_t N = x.size(0), D = x.size(1);
    const float* rows = x.const_data_ptr<float>();
    auto* out = reinterpret_cast<uint16_t*>(half.mutable_data_ptr<at::BFloat16>());
    // Terms are summed in fp32, where one below 2^-126 may be flushed to 0.
    const double above = 1 + D * 0x1p-23, flushed = D * 0x1p-126;
    parallel_for(0, N, grain(D), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        double squares[2];
        kernels().screen.round_row(rows + n * D, D, out + n * D, squares);
        whole[n] = above * std::sqrt(squares[0] + flushed);
        lost[n] = 0x1p-9 * above * std::sqrt(squares[1] + flushed);
        kept[n] = above * (whole[n] + lost[n]);
      }
    });
    for (int64_t n = 0; n < N; ++n) {
      usable = usable && whole[n] < kLargest && kept[n] < kLargest;  // false for NaN
      most_whole = std::max(most_whole, whole[n]);
      most_kept = std::max(most_kept, kept[n]);
      most_lost = std::max(most_lost, lost[n]);
    }
  }
};

// For one side, what could still be each row's maximum.
class Contest {
 public:
  std::vector<float> best, limit;

  Contest(const Rounded& own, const Rounded& other, int64_t D)
      : best(own.whole.size(), kLowest),
        limit(own.whole.size(), kLowest),
        error_(own.whole.size()),
        pairs_(own.whole.size()),
        room_(kMost * static_cast<int64_t>(own.whole.size())) {
    const double terms = static_cast<double>(D);
    for (size_t n = 0; n < error_.size(); ++n)
      error_[n] = own.lost[n] * other.most_whole + own.kept[n] * other.most_lost +
                  terms * kSummed * own.kept[n] * other.most_kept +
                  terms * kFlushed * (1 + own.whole[n] + other.most_whole);
  }

  // The least score that could still win: a rounded score stands for anything up to its error above
  // or below, and the winner's own rounding is that of a number no larger than both.
  void raise(int64_t n, float highest) {
    if (highest == best[n] || highest == kLowest) return;
    best[n] = highest;
    const double error = 2 * error_[n];
    const double below = highest - error - 2 * kRounded * (std::abs(highest) + error);
    limit[n] = std::nextafter(static_cast<float>(below), kLowest);
  }

  // Returns false when too many pairs are too close to be told apart.
  bool keep(int64_t n, int64_t index, float score) {
    Pairs& pairs = pairs_[n];
    if (pairs.size() == pairs.capacity()) {
      drop_beaten(n);
      const int64_t before = static_cast<int64_t>(pairs.capacity());
      if (static_cast<int64_t>(pairs.size()) == before) pairs.reserve(2 * before);
      if ((room_ -= static_cast<int64_t>(pairs.capacity()) - before) < 0) return false;
    }
    pairs.push_back({index, score});
    return true;
  }

  // Multiplies what is left; pairs were kept in increasing order, so the first of equals wins.
  template <typename Product>
  void decide(int64_t n, Product&& product, float* value, int64_t* winner) {
    drop_beaten(n);
    double highest = 0;
    for (const Pair& pair : pairs_[n]) {
      const double exact = product(pair.index);
      if (*winner >= 0 && exact <= highest) continue;
      highest = exact;
      *winner = pair.index;
    }
    if (*winner >= 0) *value = static_cast<float>(highest);
  }

 private:
  struct Pair {
    int64_t index;
    float score;
  };
  using Pairs = c10::SmallVector<Pair, 4>;  // most rows keep one or two

  std::vector<double> error_;
  std::vector<Pairs> pairs_;
  std::atomic<int64_t> room_;

  void drop_beaten(int64_t n) {
    const auto beaten = [&](const Pair& pair) { return pair.score < limit[n]; };
    Pairs& pairs = pairs_[n];
    pairs.erase(std::remove_if(pairs.begin(), pairs.end(), beaten), pairs.end());
  }
};

using Scores = Tile<at::BFloat16>;

const uint16_t* words(const Scores& t, int64_t r) {
  return reinterpret_cast<const uint16_t*>(t.row(r));
}

// Both return false when a row or column has too many pairs to keep.
bool screen_rows(const Scores& t, Contest& rows) {
  const auto& loop = kernels().screen;
  std::atomic<bool> room = true;
  parallel_for(0, t.rows, grain(t.columns + kPerRow), [&](int64_t r0, int64_t r1) {
    std::vector<int32_t> found(t.columns);
    for (int64_t r = r0; r < r1 && room; ++r) {
      const int64_t i = t.first_row + r;
      rows.raise(i, loop.row_max(words(t, r), t.columns, rows.best[i]));
      if (rows.best[i] == kLowest) continue;  // nothing but pairs that share an id
      const int64_t hits = loop.row_above(words(t, r), t.columns, rows.limit[i], found.data());
      for (int64_t k = 0; k < hits && room; ++k)
        if (!rows.keep(i, t.first_column + found[k], t.row(r)[found[k]])) room = false;
    }
  });
  return room;
}

bool screen_columns(const Scores& t, Contest& columns) {
  const auto& loop = kernels().screen;
  std::atomic<bool> room = true;
  parallel_for(0, t.columns, grain(t.rows + kPerRow), [&](int64_t c0, int64_t c1) {
    const int64_t size = c1 - c0, first = t.first_column + c0;
    std::vector<float> highest(&columns.best[first], &columns.best[first] + size), limit(size);
    loop.column_max(words(t, 0) + c0, t.rows, t.columns, size, highest.data());
    for (int64_t c = 0; c < size; ++c) {
      columns.raise(first + c, highest[c]);
      // -inf are pairs that share an id, never a candidate.
      limit[c] = std::max(columns.limit[first + c], std::numeric_limits<float>::lowest());
    }
    std::vector<int32_t> found(size);
    for (int64_t r = 0; r < t.rows && room; ++r) {
      const int64_t hits = loop.columns_above(words(t, r) + c0, size, limit.data(), found.data());
      for (int64_t k = 0; k < hits && room; ++k)
        if (!columns.keep(first + found[k], t.first_row + r, t.row(r)[c0 + found[k]])) room = false;
    }
  });
  return room;
}

}  // namespace

bool screening_possible() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool in_hardware = __builtin_cpu_supports("avx512bf16");
#else
  constexpr bool in_hardware = false;
#endif
  return in_hardware && &kernels() == &cpu::kernels_avx512 &&
         at::globalContext().userEnabledMkldnn();
}

bool screening_pays(const Tensor& x, const Tensor& y) {
  const int64_t rows = std::min(x.size(0), y.size(0)), D = x.size(1);
  return screening_possible() && x.scalar_type() == at::kFloat && rows >= kLeastRows &&
         D >= kLeastTerms && rows * D >= kLeastElements;
}

std::optional<Hardest> screened(const Tensor& x, const Tensor& y, const int64_t* positive_of,
                                const SameId& same) {
  const Rounded image(x), text(y);
  if (!image.usable || !text.usable) return std::nullopt;
  const int64_t N = x.size(0), M = y.size(0), D = x.size(1);
  Contest rows(image, text, D), columns(text, image, D);
  const Products<at::BFloat16> products(image.half, text.half, 1);
  for (int64_t i = 0; i < N; i += products.rows)
    for (int64_t j = 0; j < M; j += products.columns) {
      const Scores tile = products(i, j);
      exclude(tile, same);
      if (!screen_rows(tile, rows) || !screen_columns(tile, columns)) return std::nullopt;
    }

  Hardest found(x, y);
  const auto product = [D, of = kernels().f32.product, a = x.const_data_ptr<float>(),
                        b = y.const_data_ptr<float>()](int64_t i, int64_t j) {
    return of(a + i * D, b + j * D, D);
  };
  float *s = found.positive.mutable_data_ptr<float>(), *row = found.row.values<float>();
  float* column = found.column.values<float>();
  int64_t *row_index = found.row.indices(), *column_index = found.column.indices();
  parallel_for(0, N + M, grain(4 * D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, N); ++i)
      rows.decide(i, [&](int64_t j) { return product(i, j); }, row + i, row_index + i);
    for (int64_t j = std::max(begin, N) - N; j < end - N; ++j) {
      columns.decide(j, [&](int64_t i) { return product(i, j); }, column + j, column_index + j);
      const int64_t i = positive_of ? positive_of[j] : j;
      if (i >= 0 && i < N) s[j] = static_cast<float>(product(i, j));
    }
  });
  return found;
}

namespace {

// What screening alone says, for tests: nothing, or what hardest_negatives_forward returns.
std::vector<Tensor> screened_negatives(const Tensor& image, const Tensor& text,
                                       const OptionalTensor& image_ids,
                                       const OptionalTensor& text_ids) {
  const auto found =
      screened(image.contiguous(), text.contiguous(), nullptr, SameId(image_ids, text_ids));
  if (!found) return {};
  const auto& [positive, row, column] = *found;
  return {positive, row.value, row.index, column.value, column.index};
}

TORCH_LIBRARY_FRAGMENT(itm_native, m) {
  m.def(
      "screened_negatives(Tensor image, Tensor text, Tensor? image_ids, Tensor? text_ids) -> "
      "Tensor[]");
}

TORCH_LIBRARY_IMPL(itm_native, CPU, m) { m.impl("screened_negatives", screened_negatives); }

}  // namespace
}  // namespace itm
