#pragma once
// The inner loops of the CPU backend, one table of function pointers per instruction set.
//
// Everything here is torch-free. A tile is a block of scores that a library product has just
// written, `rows` x `columns` with row stride `columns`; it still lies in the cache when these
// loops reduce it, and nothing of it is kept.

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/simd/philox.h"

namespace itm::cpu {

// Keys strictly between low and high are summed, each as offset + sign * key.
template <typename T>
struct Band {
  T low, high, offset, sign;
};

// What the gradient of every row's bounded sum of relative distances is made of, for N rows.
template <typename T>
struct RowBands {
  const T *low, *high, *norm, *share, *slope;
};

// How many scores of a row are larger than a limit, and how many equal it.
struct Standing {
  int64_t above, equal;
};

// The softmax of rows and of columns: shares a and b of e^(score - highest - sum), where the sum is
// a log-sum-exp relative to the highest score.
template <typename T>
struct Softmaxes {
  const T *a, *row_highest, *row, *b, *column_highest, *column;

  // What a tile that begins there sees.
  Softmaxes at(int64_t r, int64_t c) const {
    return {a + r, row_highest + r, row + r, b + c, column_highest + c, column + c};
  }
};

// Running maximum of rows (or columns) over tiles. NaN is larger than everything and stays; ties go
// to the lowest index, because tiles come in increasing order.
template <typename T>
struct Loops {
  // best[r], index[r] over all columns, which are texts first_column + c, for rows [r0, r1).
  void (*row_max)(const T* tile, int64_t columns, int64_t r0, int64_t r1, int64_t first_column,
                  T* best, int64_t* index);
  // best[c], index[c] over all rows, which are images first_row + r, for columns [c0, c1).
  void (*column_max)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                     int64_t first_row, T* best, int64_t* index);
  // The same, over scores below limit[c] alone.
  void (*column_max_below)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                           int64_t first_row, const T* limit, T* best, int64_t* index);
  // Maximum of one row over scores below a limit.
  void (*row_max_below)(const T* row, int64_t columns, int64_t first_column, T limit, T* best,
                        int64_t* index);
  // Sums over a batch are in fp64, whatever their terms are.
  // Running log-sum-exp of rows [r0, r1): maximum m[r] and sum l[r] of e^(score - m[r]).
  void (*row_exp_sum)(const T* tile, int64_t columns, int64_t r0, int64_t r1, T* m, double* l);
  // The same of columns [c0, c1).
  void (*column_exp_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1, T* m,
                         double* l);
  // Turns scores of rows [r0, r1) into the gradient of their softmax in rows and columns.
  void (*softmax_weights)(T* tile, int64_t columns, int64_t r0, int64_t r1,
                          const Softmaxes<T>& softmax);
  // sum[c] += log(1 + e^score) over rows, for columns [c0, c1).
  void (*column_softplus_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                              double* sum);
  // Turns scores of rows [r0, r1) into g[c] / (1 + e^-score).
  void (*sigmoid_weights)(T* tile, int64_t columns, int64_t r0, int64_t r1, const T* g);
  // Turns row[c] into the softmax of (row[c] - offset[c]) scale, over 1 column or more.
  void (*softmax_row)(T* row, const T* offset, int64_t columns, T scale);
  // Turns the gradient of a softmax p into that of its scores, times scale.
  void (*softmax_gradient)(T* grad, const T* p, int64_t columns, T scale);
  // Writes the row scaled to length 1 and returns its length; the gradient of the row from that.
  T (*unit_row)(const T* x, T* out, int64_t D);
  void (*unit_gradient)(const T* grad, const T* unit, T length, T* out, int64_t D);
  // Returns the sum of [score + offset]+ over a row.
  double (*row_hinge_sum)(const T* row, int64_t columns, T offset);
  // sum[c] += [score + offset[c]]+ over rows, for columns [c0, c1).
  void (*column_hinge_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                           const T* offset, double* sum);
  // weights[c] += share where score + offset > 0; returns how many there are.
  int64_t (*row_hinge_weights)(const T* row, T* weights, int64_t columns, T offset, T share);
  // weights[c] = share[c] where score + offset[c] > 0, else 0.
  void (*column_hinge_weights)(const T* row, T* weights, int64_t columns, const T* offset,
                               const T* share);
  // count[c] += how many rows have score + offset[c] > 0, for columns [c0, c1).
  void (*column_hinge_count)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                             const T* offset, double* count);
  // Returns the sum of one row over a band, where NaN counts as inside; bit c % 32 of words[c / 32]
  // says whether column c is inside.
  T (*band_row)(const T* row, int64_t columns, const Band<T>& band, uint32_t* words);
  // Adds the sums of columns over up to 32 rows to sum; bit r of words[c] says whether row r is
  // inside.
  void (*band_columns)(const T* tile, int64_t stride, int64_t rows, int64_t columns,
                       const Band<T>& band, T* sum, uint32_t* words);
  // weights[c] = share + shares[c] where bit c is set, else 0.
  void (*band_weights)(const uint32_t* words, int64_t columns, T share, const T* shares,
                       T* weights);
  // Turns the distances of row n into their gradient, at both places where a pair appears.
  void (*relative_weights)(T* row, int64_t columns, int64_t n, const RowBands<T>& bands);
  // out = sum over k of row rows[k] of x, for `size` columns of rows `stride` apart.
  void (*sum_of_rows)(const T* x, int64_t stride, const int64_t* rows, int64_t count, T* out,
                      int64_t size);
  // Returns x . y, summed in fp64.
  double (*product)(const T* x, const T* y, int64_t D);
  Standing (*count_above)(const T* row, int64_t columns, T limit);
  // Adds noise of row i and columns first_column (even) + c: for_row[c] is the score and what is
  // drawn for the row, the score itself gets what is drawn for its column.
  void (*add_gumbel)(T* row, int64_t columns, uint32_t i, int64_t first_column, T temperature,
                     const Seed& seed, T* for_row);
  // Columns that the next two take at once, and their packing: packed[d][c] of up to that many
  // rows of y, the last one repeated.
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
  // out += sum over k of weight[k] times row index[k] of y, times its difference to x, or times the
  // sign of x - y. Without index, row k.
  void (*add_rows)(T* out, const T* y, const int64_t* index, const T* weight, int64_t count,
                   int64_t D);
  void (*add_differences)(T* out, const T* x, const T* y, const int64_t* index, const T* weight,
                          int64_t count, int64_t D);
  void (*add_signs)(T* out, const T* x, const T* y, const int64_t* index, const T* weight,
                    int64_t count, int64_t D);
  // The differences of several rows of x to all `count` rows of y, with a stride between the
  // weights of two rows of x.
  void (*add_all_differences)(T* out, const T* x, int64_t rows, const T* y, const T* weight,
                              int64_t stride, int64_t count, int64_t D);
  // Columns of a panel, and its signs: to_x[n] += sum over m of weight[n][m] sign(x[n] - y[m]), and
  // unless to_y is null, to_y[m] -= the sum over n of the same.
  int64_t (*panel_size)();
  void (*add_sign_panels)(const T* x, T* to_x, int64_t rows, const T* y, T* to_y, int64_t count,
                          const T* weight, int64_t stride);
};

// Loops over scores in bf16, as 16-bit words.
struct ScreenLoops {
  // Maximum of a row and what came before it; the same of columns.
  float (*row_max)(const uint16_t* row, int64_t columns, float best);
  void (*column_max)(const uint16_t* tile, int64_t rows, int64_t stride, int64_t columns,
                     float* best);
  // Writes the columns whose score is at least a limit, or at least their own; returns how many.
  int64_t (*row_above)(const uint16_t* row, int64_t columns, float limit, int32_t* found);
  int64_t (*columns_above)(const uint16_t* row, int64_t columns, const float* limit,
                           int32_t* found);
  // Rounds a row to bf16; squares are |x|^2 and |x - half|^2.
  void (*round_row)(const float* x, int64_t D, uint16_t* half, double* squares);
};

struct Kernels {
  Loops<float> f32;
  Loops<double> f64;
  ScreenLoops screen;
  // noise[k] of word[k], as philox.h says.
  void (*gumbel)(const uint32_t* words, float* noise, int64_t size);
  // The instruction set, in ATen's spelling, and whether this CPU has all of it.
  const char* instruction_set;
  bool (*runs_here)();
};

// Constant-initialised: nothing of an instruction set runs before it has been chosen.
extern const Kernels kernels_default;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

// From the highest set to the lowest, which every CPU of the architecture has.
inline constexpr const Kernels* kTables[] = {&kernels_avx512, &kernels_avx2, &kernels_default};

template <typename T>
const Loops<T>& loops(const Kernels& kernels);
template <>
inline const Loops<float>& loops<float>(const Kernels& kernels) {
  return kernels.f32;
}
template <>
inline const Loops<double>& loops<double>(const Kernels& kernels) {
  return kernels.f64;
}

}  // namespace itm::cpu
