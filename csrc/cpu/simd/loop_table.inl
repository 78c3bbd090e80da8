// All loops of one instruction set. Included once per instruction set, inside a namespace of its
// own, after every other header: the target pragma must apply to these loops alone. The including
// file defines kVectorBytes, because g++ expands macros before it applies the pragma.

// Integers of the width of T, so that a blend of scores also blends their indices.
template <typename T>
struct SameWidth;
template <>
struct SameWidth<float> {
  using type = int32_t;
};
template <>
struct SameWidth<double> {
  using type = int64_t;
};

// A comparison of two vectors sets all bits of a lane of `bits` or none.
template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};

#include "cpu/simd/accumulation.inl"
#include "cpu/simd/band_sum.inl"
#include "cpu/simd/distance_gradient.inl"
#include "cpu/simd/distances.inl"
#include "cpu/simd/exponential.inl"
#include "cpu/simd/gumbel.inl"
#include "cpu/simd/hinge_sum.inl"
#include "cpu/simd/l1_gradient.inl"
#include "cpu/simd/row_reductions.inl"
#include "cpu/simd/screening.inl"
#include "cpu/simd/softmax.inl"
#include "cpu/simd/stacked_attention.inl"
#include "cpu/simd/stacked_attention_gradient.inl"
#include "cpu/simd/tile_maximum.inl"
#include "cpu/simd/unit_rows.inl"

template <typename T>
constexpr Loops<T> loops_of() {
  return {
      .row_max = row_max<T>,
      .column_max = column_max<T>,
      .column_max_below = column_max_below<T>,
      .row_max_below = row_max_below<T>,
      .row_exp_sum = row_exp_sum<T>,
      .column_exp_sum = column_exp_sum<T>,
      .softmax_weights = softmax_weights<T>,
      .column_softplus_sum = column_softplus_sum<T>,
      .sigmoid_weights = sigmoid_weights<T>,
      .softmax_row = softmax_row<T>,
      .softmax_gradient = softmax_gradient<T>,
      .unit_row = unit_row<T>,
      .unit_gradient = unit_gradient<T>,
      .row_hinge_sum = row_hinge_sum<T>,
      .column_hinge_sum = column_hinge_sum<T>,
      .row_hinge_weights = row_hinge_weights<T>,
      .column_hinge_weights = column_hinge_weights<T>,
      .column_hinge_count = column_hinge_count<T>,
      .band_row = band_row<T>,
      .band_columns = band_columns<T>,
      .band_weights = band_weights<T>,
      .relative_weights = relative_weights<T>,
      .sum_of_rows = sum_of_rows<T>,
      .product = product<T>,
      .count_above = count_above<T>,
      .add_gumbel = add_gumbel<T>,
      .group_size = group_size<T>,
      .pack_columns = pack_columns<T>,
      .l1_rows = l1_rows<T>,
      .squared_rows = squared_rows<T>,
      .squared_pairs = squared_pairs<T>,
      .add_rows = add_rows<T>,
      .add_differences = add_differences<T>,
      .add_signs = add_signs<T>,
      .add_all_differences = add_all_differences<T>,
      .panel_size = panel_size<T>,
      .add_sign_panels = add_sign_panels<T>,
      .attend = attend<T>,
      .attention_gradient = attention_gradient<T>,
  };
}

constexpr ScreenLoops screen_loops() {
  return {
      .row_max = screen_row_max,
      .column_max = screen_column_max,
      .row_above = screen_row_above,
      .columns_above = screen_columns_above,
      .round_row = round_row,
  };
}

constexpr LoopTable loop_table(const char* instruction_set, bool (*runs_here)()) {
  return {loops_of<float>(), loops_of<double>(), screen_loops(), gumbel,
          instruction_set,   runs_here};
}
