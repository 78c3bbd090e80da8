#pragma once
// The inner loops of the CPU backend: one table of function pointers per instruction set.
//
// The loops are torch-free. A tile is a block of scores that a library product has just written,
// `rows` x `columns` with row stride `columns`. The loops reduce it while it is in a cache.

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/simd/philox.h"

namespace itm::simd {

// Keys strictly between low and high are summed, each as offset + sign * key.
template <typename T>
struct Band {
  T low, high, offset, sign;
};

// Per row, the inputs of the gradient of bounded sums of relative distances: the band, the norm,
// the gradient of a key inside, and the factor of the key in its gradient through the norm.
template <typename T>
struct RowBands {
  const T *low, *high, *norm, *inside, *slope;
};

// The numbers of scores above a limit and equal to it.
struct RankCounts {
  int64_t above, equal;
};

// The gradient of row and column log-sum-exps in the scores: a and b are the factors of e^(score -
// highest - sum), where sum is a log-sum-exp relative to the highest score.
template <typename T>
struct Softmaxes {
  const T *a, *row_highest, *row, *b, *column_highest, *column;

  // Returns the part for a tile that starts at row r and column c.
  Softmaxes at(int64_t r, int64_t c) const {
    return {a + r, row_highest + r, row + r, b + c, column_highest + c, column + c};
  }
};

// How the products of a context row are normalised over the rows of every query.
enum class OverQuery { kNothing, kNorm, kSoftmax };

// The cross attention of one context and consecutive queries, with a workspace.
template <typename T>
struct Attention {
  static constexpr int64_t kRows = 4;      // rows of alpha are padded to a multiple
  static constexpr int64_t kColumns = 10;  // numbers per query row in the workspace

  bool clipped;
  OverQuery over_query;
  T smooth;
  // The context has `rows` rows and a Gram matrix [rows, padded rows], also in fp64 for fp32 rows.
  // Its entries below 0 are bounded: `largest` is the largest one, `row` the largest sum of a row.
  int64_t rows;
  const T* gram;
  const double* exact_gram;
  T largest, row;
  // Query j has the columns from first[j] - first[0] to first[j + 1] - first[0]; query_norm holds
  // the norms of all query rows.
  const int64_t* first;
  int64_t queries, columns;
  const T* query_norm;
  // The rows of both, [rows, width] and [columns, width].
  const T *context_rows, *query_rows;
  int64_t width;
  // Workspace: attention alpha and G alpha, [padded rows, stride]; two numbers per context row and
  // query; three fp64 numbers per context row; numbers per query row. stride is a multiple of 128
  // bytes.
  int64_t stride;
  T *alpha, *attended, *over;
  double* exact;
  T* of_columns;

  int64_t padded_rows() const { return (rows + kRows - 1) / kRows * kRows; }
  T* column(int64_t k) const { return of_columns + k * stride; }
  // For a query with columns in fp64: the factor that normalises the products of each row.
  double* factors() const { return exact + 2 * rows; }
  // p = sum of alpha s, |a|^2, |a| |e|, the cosine, and its gradient, which the caller writes.
  T* product() const { return column(5); }
  T* square() const { return column(6); }
  T* norms() const { return column(7); }
  T* cosine() const { return column(8); }
  T* of_cosine() const { return column(9); }
};

// Loops over fp32 or fp64. Maxima run over tiles: NaN is larger than any number and stays, and ties
// go to the lowest index, because tiles are visited in increasing order.
template <typename T>
struct Loops {
  // best[r], index[r] over all columns, which are texts first_column + c, for rows [r0, r1).
  void (*row_max)(const T* tile, int64_t columns, int64_t r0, int64_t r1, int64_t first_column,
                  T* best, int64_t* index);
  // best[c], index[c] over all rows, which are images first_row + r, for columns [c0, c1).
  void (*column_max)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                     int64_t first_row, T* best, int64_t* index);
  // The same over scores below limit[c].
  void (*column_max_below)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                           int64_t first_row, const T* limit, T* best, int64_t* index);
  // Maximum of one row over scores below a limit.
  void (*row_max_below)(const T* row, int64_t columns, int64_t first_column, T limit, T* best,
                        int64_t* index);
  // Running log-sum-exp of rows [r0, r1): maximum m[r] and sum l[r] of e^(score - m[r]). Sums over
  // a batch are in fp64 for both types of scores.
  void (*row_exp_sum)(const T* tile, int64_t columns, int64_t r0, int64_t r1, T* m, double* l);
  // The same of columns [c0, c1).
  void (*column_exp_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1, T* m,
                         double* l);
  // Turns scores of rows [r0, r1) into the gradient of the log-sum-exps of rows and columns.
  void (*softmax_weights)(T* tile, int64_t columns, int64_t r0, int64_t r1,
                          const Softmaxes<T>& softmax);
  // sum[c] += log(1 + e^score) over rows, for columns [c0, c1).
  void (*column_softplus_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                              double* sum);
  // Turns scores of rows [r0, r1) into g[c] / (1 + e^-score).
  void (*sigmoid_weights)(T* tile, int64_t columns, int64_t r0, int64_t r1, const T* g);
  // Turns row[c] into the softmax of (row[c] - offset[c]) scale, for at least one column.
  void (*softmax_row)(T* row, const T* offset, int64_t columns, T scale);
  // Turns the gradient of a softmax p into that of its inputs, times scale.
  void (*softmax_gradient)(T* grad, const T* p, int64_t columns, T scale);
  // Writes the unit row and returns the norm of x.
  T (*unit_row)(const T* x, T* out, int64_t D);
  // Writes the gradient of a row from that of its unit row.
  void (*unit_gradient)(const T* grad, const T* unit, T norm, T* out, int64_t D);
  // Returns the sum of [score + offset]+ over a row.
  double (*row_hinge_sum)(const T* row, int64_t columns, T offset);
  // sum[c] += [score + offset[c]]+ over rows, for columns [c0, c1).
  void (*column_hinge_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                           const T* offset, double* sum);
  // weights[c] += weight where score + offset > 0; returns the number of such columns.
  int64_t (*row_hinge_weights)(const T* row, T* weights, int64_t columns, T offset, T weight);
  // weights[c] = weight[c] where score + offset[c] > 0, else 0.
  void (*column_hinge_weights)(const T* row, T* weights, int64_t columns, const T* offset,
                               const T* weight);
  // count[c] += the number of rows with score + offset[c] > 0, for columns [c0, c1).
  void (*column_hinge_count)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                             const T* offset, double* count);
  // Returns the sum of one row over a band, where NaN counts as inside. Sets bit c % 32 of
  // words[c / 32] if column c is inside.
  T (*band_row)(const T* row, int64_t columns, const Band<T>& band, uint32_t* words);
  // Adds the sums of columns over up to 32 rows to sum. Sets bit r of words[c] if row r is inside.
  void (*band_columns)(const T* tile, int64_t stride, int64_t rows, int64_t columns,
                       const Band<T>& band, T* sum, uint32_t* words);
  // weights[c] = of_row + of_columns[c] where bit c is set, else 0.
  void (*band_weights)(const uint32_t* words, int64_t columns, T of_row, const T* of_columns,
                       T* weights);
  // Turns the distances of row n into their gradient in the sums of both rows of each pair.
  void (*relative_weights)(T* row, int64_t columns, int64_t n, const RowBands<T>& bands);
  // out = sum over k of row rows[k] of x, for `size` columns of rows `stride` apart.
  void (*sum_of_rows)(const T* x, int64_t stride, const int64_t* rows, int64_t count, T* out,
                      int64_t size);
  // Returns x . y, summed in fp64.
  double (*product)(const T* x, const T* y, int64_t D);
  RankCounts (*count_above)(const T* row, int64_t columns, T limit);
  // Adds noise to the scores of row i and columns first_column (even) + c: for_row[c] is the score
  // plus the noise drawn for the row, and row[c] becomes the score plus that drawn for the column.
  void (*add_gumbel)(T* row, int64_t columns, uint32_t i, int64_t first_column, T temperature,
                     const Seed& seed, T* for_row);
  // Returns the number of rows of y that l1_rows and squared_rows process together, and packs up to
  // that many as packed[d][c], repeating the last one.
  int64_t (*group_size)();
  void (*pack_columns)(const T* y, int64_t columns, int64_t D, T* packed);
  // out[r][c] = sum over d of |x[r][d] - packed[d][c]|, or of its square; out has a row stride.
  void (*l1_rows)(const T* x, int64_t rows, const T* packed, int64_t D, T* out, int64_t stride,
                  int64_t columns);
  void (*squared_rows)(const T* x, int64_t rows, const T* packed, int64_t D, T* out, int64_t stride,
                       int64_t columns);
  // out[k] = |x - y[index[k]]|^2
  void (*squared_pairs)(const T* x, const T* y, const int64_t* index, int64_t count, int64_t D,
                        T* out);
  // out += sum over k of weight[k] times row index[k] of y, or times its difference x - y, or times
  // the sign of the difference. Without index, row k.
  void (*add_rows)(T* out, const T* y, const int64_t* index, const T* weight, int64_t count,
                   int64_t D);
  void (*add_differences)(T* out, const T* x, const T* y, const int64_t* index, const T* weight,
                          int64_t count, int64_t D);
  void (*add_signs)(T* out, const T* x, const T* y, const int64_t* index, const T* weight,
                    int64_t count, int64_t D);
  // The same with differences of several rows of x to all `count` rows of y; `stride` is the
  // distance between the weights of two rows of x.
  void (*add_all_differences)(T* out, const T* x, int64_t rows, const T* y, const T* weight,
                              int64_t stride, int64_t count, int64_t D);
  // Returns the columns of a panel.
  int64_t (*panel_size)();
  // to_x[n] += sum over m of weight[n][m] sign(x[n] - y[m]) in a panel, and unless to_y is null,
  // to_y[m] -= the sum over n of the same terms.
  void (*add_sign_panels)(const T* x, T* to_x, int64_t rows, const T* y, T* to_y, int64_t count,
                          const T* weight, int64_t stride);
  // Computes the attention and the cosines from products s; returns how many cosines are computed
  // in fp64, because the rows that are attended to nearly cancel.
  int64_t (*attend)(const Attention<T>& a, const T* s, int64_t stride);
  // After attend: writes the gradient of the products s from that of the cosines to `out`, which
  // may be s. own[w] is the factor of the query row in its gradient through its norm. Adds twice
  // the gradient of the Gram matrix to of_gram, whose entries below the diagonal are not defined.
  void (*attention_gradient)(const Attention<T>& a, const T* s, int64_t stride, T* out,
                             int64_t out_stride, T* own, double* of_gram);
};

// Loops over bf16 scores, as 16-bit words.
struct ScreenLoops {
  // Maximum of a row and the running maximum `best`; the same for columns.
  float (*row_max)(const uint16_t* row, int64_t columns, float best);
  void (*column_max)(const uint16_t* tile, int64_t rows, int64_t stride, int64_t columns,
                     float* best);
  // Writes the columns whose score is at least a limit, one for all or one per column; returns
  // their number.
  int64_t (*row_above)(const uint16_t* row, int64_t columns, float limit, int32_t* found);
  int64_t (*columns_above)(const uint16_t* row, int64_t columns, const float* limit,
                           int32_t* found);
  // Rounds a row to bf16 and writes |x|^2 and |2^9 (x - half)|^2 to squares.
  void (*round_row)(const float* x, int64_t D, uint16_t* half, double* squares);
};

struct LoopTable {
  Loops<float> f32;
  Loops<double> f64;
  ScreenLoops screen;
  // noise[k] from word[k], as defined in philox.h.
  void (*gumbel)(const uint32_t* words, float* noise, int64_t size);
  // The instruction set, in ATen's spelling, and whether this CPU supports all of it.
  const char* instruction_set;
  bool (*runs_here)();
};

// Constant-initialised: no code of an instruction set runs before the set has been chosen.
extern const LoopTable loops_default;
extern const LoopTable loops_avx2;
extern const LoopTable loops_avx512;

// From the highest set to the lowest, which every CPU of the architecture supports.
inline constexpr const LoopTable* kLoopTables[] = {&loops_avx512, &loops_avx2, &loops_default};

template <typename T>
const Loops<T>& loops(const LoopTable& kernels);
template <>
inline const Loops<float>& loops<float>(const LoopTable& kernels) {
  return kernels.f32;
}
template <>
inline const Loops<double>& loops<double>(const LoopTable& kernels) {
  return kernels.f64;
}

}  // namespace itm::simd
