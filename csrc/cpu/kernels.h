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

namespace itm::cpu {

// What the gradient of every row's bounded sum is made of, for N rows.
template <typename T>
struct Bands {
  const T *low, *high, *norm, *share, *slope;
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
  // Running log-sum-exp of rows [r0, r1): maximum m[r] and sum l[r] of e^(score - m[r]).
  void (*row_exp_sum)(const T* tile, int64_t columns, int64_t r0, int64_t r1, T* m, T* l);
  // The same of columns [c0, c1).
  void (*column_exp_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1, T* m,
                         T* l);
  // Turns scores of rows [r0, r1) into a[r] e^(score - row[r]) + b[c] e^(score - column[c]).
  void (*softmax_weights)(T* tile, int64_t columns, int64_t r0, int64_t r1, const T* a,
                          const T* row, const T* b, const T* column);
  // sum[c] += log(1 + e^score) over rows, for columns [c0, c1).
  void (*column_softplus_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                              T* sum);
  // Turns scores of rows [r0, r1) into g[c] / (1 + e^-score).
  void (*sigmoid_weights)(T* tile, int64_t columns, int64_t r0, int64_t r1, const T* g);
  // Turns row[c] into the softmax of (row[c] - offset[c]) scale, over 1 column or more.
  void (*softmax_row)(T* row, const T* offset, int64_t columns, T scale);
  // Turns the gradient of a softmax p into that of its scores, times scale.
  void (*softmax_gradient)(T* grad, const T* p, int64_t columns, T scale);
  // Returns the sum of [score + offset]+ over a row.
  T (*row_hinge_sum)(const T* row, int64_t columns, T offset);
  // sum[c] += [score + offset[c]]+ over rows, for columns [c0, c1).
  void (*column_hinge_sum)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                           const T* offset, T* sum);
  // weights[c] += share where score + offset > 0; returns how many there are.
  int64_t (*row_hinge_weights)(const T* row, T* weights, int64_t columns, T offset, T share);
  // weights[c] = share[c] where score + offset[c] > 0, else 0.
  void (*column_hinge_weights)(const T* row, T* weights, int64_t columns, const T* offset,
                               const T* share);
  // count[c] += how many rows have score + offset[c] > 0, for columns [c0, c1).
  void (*column_hinge_count)(const T* tile, int64_t rows, int64_t columns, int64_t c0, int64_t c1,
                             const T* offset, T* count);
  // Returns the sum of keys that lie strictly between low and high; NaN counts as inside.
  T (*band_sum)(const T* row, int64_t columns, T low, T high);
  // Returns the sum of high - key over the same keys.
  T (*repel_sum)(const T* row, int64_t columns, T low, T high);
  // Turns the keys of row n into their gradient, at both places where a pair appears.
  void (*band_weights)(T* row, int64_t columns, int64_t n, const Bands<T>& bands);
  // out += weight * row
  void (*add_row)(T* out, const T* row, T weight, int64_t size);
  // Columns that the next two take at once, and their packing: packed[d][c] of up to that many
  // rows of y, the last one repeated.
  int64_t (*group_size)();
  void (*pack_columns)(const T* y, int64_t columns, int64_t D, T* packed);
  // out[r][c] = sum over d of |x[r][d] - packed[d][c]|, or of its square; out has a row stride.
  void (*l1_rows)(const T* x, int64_t rows, const T* packed, int64_t D, T* out, int64_t stride,
                  int64_t columns);
  void (*squared_rows)(const T* x, int64_t rows, const T* packed, int64_t D, T* out, int64_t stride,
                       int64_t columns);
  // out += sum over rows r of weight[r] sign(x - y[r]), or of weight[r] (x - y[r]).
  void (*add_signs)(T* out, const T* x, const T* y, const T* weight, int64_t rows, int64_t D);
  void (*add_differences)(T* out, const T* x, const T* y, const T* weight, int64_t rows, int64_t D);
};

struct Kernels {
  Loops<float> f32;
  Loops<double> f64;
};

// Constant-initialised: nothing of an instruction set runs before it has been chosen.
extern const Kernels kernels_default;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

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
