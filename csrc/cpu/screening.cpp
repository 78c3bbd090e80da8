// Hardest negatives from bf16 products, which bf16 instructions compute several times faster,
// without bf16 errors: a rigorous error bound selects the pairs that could be a maximum, and only
// those are multiplied again, exactly.
//
// With x = h + l, where h is x rounded to bf16, the library's product differs from x . y by
//   |l_x . y + h_x . l_y|             <= |l_x| |y| + |h_x| |l_y|             (rounded inputs)
//   + the error of its fp32 sum       <= D 2^-22 |h_x| |h_y|                 (D additions)
//   + terms too small for fp32        <= D 2^-124 (1 + |x| + |y|)            (flushed to 0)
//   + its own rounding to bf16        <= 2^-8 of itself.
// A pair whose score is below the row's best by more than twice this error cannot be the maximum.
// The others are candidates, up to 16 per row. The result is the exact maximum with the lowest
// index, for any tiles, threads and instruction set.

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "cpu/hardest_negatives.h"

namespace itm::cpu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kMostCandidates = 16;  // mean number per row
constexpr int64_t kRowCost = 1024;       // of a row's candidates, in additions
constexpr double kSumError = 0x1p-22;    // 4 units in the last place for each of D additions
constexpr double kFlushError = 0x1p-124;
constexpr double kRoundingError = 0x1p-8;  // twice that of a score rounded to bf16
constexpr double kLargestNorm = 0x1p60;    // products of two rows stay finite
// Relative to fp32 products, screening takes .7 of the time at 128 rows of 1,024, .8 at 256 of 256,
// .9 at 128 of 512, 1.0 at 192 of 256 and 1.2 at 128 of 256 or 64 of 1,024.
constexpr int64_t kLeastRows = 128, kLeastTerms = 256, kLeastElements = 128 * 512;

// Rows x rounded to bf16 h, and upper bounds of the norms of x, h and x - h.
struct RoundedRows {
  Tensor half;
  std::vector<double> norm, half_norm, rest_norm;
  double most_norm = 0, most_half_norm = 0, most_rest_norm = 0;
  bool usable = true;

  explicit RoundedRows(const Tensor& x)
      : half(at::empty(x.sizes(), x.options().dtype(at::kBFloat16))),
        norm(x.size(0)),
        half_norm(x.size(0)),
        rest_norm(x.size(0)) {
    const int64_t N = x.size(0), D = x.size(1);
    const float* rows = x.const_data_ptr<float>();
    auto* out = reinterpret_cast<uint16_t*>(half.mutable_data_ptr<at::BFloat16>());
    // Squares are summed in fp32, where terms below 2^-126 may be flushed to 0.
    const double above = 1 + D * 0x1p-23, flushed = D * 0x1p-126;
    parallel_for(0, N, grain(D), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        double squares[2];
        loop_table().screen.round_row(rows + n * D, D, out + n * D, squares);
        norm[n] = above * std::sqrt(squares[0] + flushed);
        rest_norm[n] = 0x1p-9 * above * std::sqrt(squares[1] + flushed);
        half_norm[n] = above * (norm[n] + rest_norm[n]);
      }
    });
    for (int64_t n = 0; n < N; ++n) {
      usable = usable && norm[n] < kLargestNorm && half_norm[n] < kLargestNorm;  // false for NaN
      most_norm = std::max(most_norm, norm[n]);
      most_half_norm = std::max(most_half_norm, half_norm[n]);
      most_rest_norm = std::max(most_rest_norm, rest_norm[n]);
    }
  }
};

// The candidates for the maximum of each row of one side.
class Candidates {
 public:
  std::vector<float> best, limit;

  Candidates(const RoundedRows& own, const RoundedRows& other, int64_t D)
      : best(own.norm.size(), kLowest),
        limit(own.norm.size(), kLowest),
        error_(own.norm.size()),
        pairs_(own.norm.size()),
        capacity_left_(kMostCandidates * static_cast<int64_t>(own.norm.size())) {
    const double terms = static_cast<double>(D);
    for (size_t n = 0; n < error_.size(); ++n)
      error_[n] = own.rest_norm[n] * other.most_norm + own.half_norm[n] * other.most_rest_norm +
                  terms * kSumError * own.half_norm[n] * other.most_half_norm +
                  terms * kFlushError * (1 + own.norm[n] + other.most_norm);
  }

  // Sets the limit to the least score that could still be the maximum. A rounded score represents
  // any value up to its error above or below; the rounding of the maximum itself is that of a
  // number no larger than both.
  void update_limit(int64_t n, float highest) {
    if (highest == best[n] || highest == kLowest) return;
    best[n] = highest;
    const double error = 2 * error_[n];
    const double below = highest - error - 2 * kRoundingError * (std::abs(highest) + error);
    limit[n] = std::nextafter(static_cast<float>(below), kLowest);
  }

  // Adds a candidate. Returns false if there are too many of them.
  bool add(int64_t n, int64_t index, float score) {
    Pairs& pairs = pairs_[n];
    if (pairs.size() == pairs.capacity()) {
      drop_below_limit(n);
      const int64_t before = static_cast<int64_t>(pairs.capacity());
      if (static_cast<int64_t>(pairs.size()) == before) pairs.reserve(2 * before);
      if ((capacity_left_ -= static_cast<int64_t>(pairs.capacity()) - before) < 0) return false;
    }
    pairs.push_back({index, score});
    return true;
  }

  // Writes the exact maximum of the remaining candidates. They are in increasing order, so that
  // ties go to the lowest index.
  template <typename Product>
  void exact_maximum(int64_t n, Product&& product, float* value, int64_t* found) {
    drop_below_limit(n);
    double highest = 0;
    for (const Pair& pair : pairs_[n]) {
      const double exact = product(pair.index);
      if (*found >= 0 && exact <= highest) continue;
      highest = exact;
      *found = pair.index;
    }
    if (*found >= 0) *value = static_cast<float>(highest);
  }

 private:
  struct Pair {
    int64_t index;
    float score;
  };
  using Pairs = c10::SmallVector<Pair, 4>;  // most rows have one or two candidates

  std::vector<double> error_;
  std::vector<Pairs> pairs_;
  std::atomic<int64_t> capacity_left_;

  void drop_below_limit(int64_t n) {
    const auto below = [&](const Pair& pair) { return pair.score < limit[n]; };
    Pairs& pairs = pairs_[n];
    pairs.erase(std::remove_if(pairs.begin(), pairs.end(), below), pairs.end());
  }
};

using Scores = Tile<at::BFloat16>;

const uint16_t* words(const Scores& t, int64_t r) {
  return reinterpret_cast<const uint16_t*>(t.row(r));
}

// Both return false if there are too many candidates.
bool screen_rows(const Scores& t, Candidates& rows) {
  const auto& loop = loop_table().screen;
  std::atomic<bool> within_capacity = true;
  parallel_for(0, t.rows, grain(t.columns + kRowCost), [&](int64_t r0, int64_t r1) {
    std::vector<int32_t> found(t.columns);
    for (int64_t r = r0; r < r1 && within_capacity; ++r) {
      const int64_t i = t.first_row + r;
      rows.update_limit(i, loop.row_max(words(t, r), t.columns, rows.best[i]));
      if (rows.best[i] == kLowest) continue;  // all pairs share an id
      const int64_t hits = loop.row_above(words(t, r), t.columns, rows.limit[i], found.data());
      for (int64_t k = 0; k < hits && within_capacity; ++k)
        if (!rows.add(i, t.first_column + found[k], t.row(r)[found[k]])) within_capacity = false;
    }
  });
  return within_capacity;
}

bool screen_columns(const Scores& t, Candidates& columns) {
  const auto& loop = loop_table().screen;
  std::atomic<bool> within_capacity = true;
  parallel_for(0, t.columns, grain(t.rows + kRowCost), [&](int64_t c0, int64_t c1) {
    const int64_t size = c1 - c0, first = t.first_column + c0;
    std::vector<float> highest(&columns.best[first], &columns.best[first] + size), limit(size);
    loop.column_max(words(t, 0) + c0, t.rows, t.columns, size, highest.data());
    for (int64_t c = 0; c < size; ++c) {
      columns.update_limit(first + c, highest[c]);
      // Pairs that share an id have the score -inf and are never candidates.
      limit[c] = std::max(columns.limit[first + c], std::numeric_limits<float>::lowest());
    }
    std::vector<int32_t> found(size);
    for (int64_t r = 0; r < t.rows && within_capacity; ++r) {
      const int64_t hits = loop.columns_above(words(t, r) + c0, size, limit.data(), found.data());
      for (int64_t k = 0; k < hits && within_capacity; ++k)
        if (!columns.add(first + found[k], t.first_row + r, t.row(r)[c0 + found[k]]))
          within_capacity = false;
    }
  });
  return within_capacity;
}

}  // namespace

bool screening_possible() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool in_hardware = __builtin_cpu_supports("avx512bf16");
#else
  constexpr bool in_hardware = false;
#endif
  return in_hardware && &loop_table() == &simd::loops_avx512 &&
         at::globalContext().userEnabledMkldnn();
}

bool screening_pays(const Tensor& x, const Tensor& y) {
  const int64_t rows = std::min(x.size(0), y.size(0)), D = x.size(1);
  return screening_possible() && x.scalar_type() == at::kFloat && rows >= kLeastRows &&
         D >= kLeastTerms && rows * D >= kLeastElements;
}

std::optional<HardestNegatives> screened_negatives(const Tensor& x, const Tensor& y,
                                                   const int64_t* positive_of, const SameId& same) {
  const RoundedRows image(x), text(y);
  if (!image.usable || !text.usable) return std::nullopt;
  const int64_t N = x.size(0), M = y.size(0), D = x.size(1);
  Candidates rows(image, text, D), columns(text, image, D);
  const ScoreTiles<at::BFloat16> products(image.half, text.half, 1);
  for (int64_t i = 0; i < N; i += products.rows)
    for (int64_t j = 0; j < M; j += products.columns) {
      const Scores tile = products(i, j);
      exclude(tile, same);
      if (!screen_rows(tile, rows) || !screen_columns(tile, columns)) return std::nullopt;
    }

  HardestNegatives found(x, y);
  const auto product = [D, of = loop_table().f32.product, a = x.const_data_ptr<float>(),
                        b = y.const_data_ptr<float>()](int64_t i, int64_t j) {
    return of(a + i * D, b + j * D, D);
  };
  float *s = found.positive.mutable_data_ptr<float>(), *row = found.row.values<float>();
  float* column = found.column.values<float>();
  int64_t *row_index = found.row.indices(), *column_index = found.column.indices();
  parallel_for(0, N + M, grain(4 * D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, N); ++i)
      rows.exact_maximum(i, [&](int64_t j) { return product(i, j); }, row + i, row_index + i);
    for (int64_t j = std::max(begin, N) - N; j < end - N; ++j) {
      columns.exact_maximum(
          j, [&](int64_t i) { return product(i, j); }, column + j, column_index + j);
      const int64_t i = positive_of ? positive_of[j] : j;
      if (i >= 0 && i < N) s[j] = static_cast<float>(product(i, j));
    }
  });
  return found;
}

}  // namespace itm::cpu
