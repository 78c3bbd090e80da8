// All loops of one instruction set. Included once per instruction set, inside a namespace of its
// own, after every other header: a target pragma must reach nothing but these loops.
#include "cpu/exponential.inl"
#include "cpu/hardest.inl"

template <typename T>
constexpr Loops<T> loops_of() {
  return {row_max<T>,         column_max<T>,     column_max_below<T>, row_max_below<T>,
          row_exp_sum<T>,     column_exp_sum<T>, softmax_weights<T>,  column_softplus_sum<T>,
          sigmoid_weights<T>, add_row<T>};
}

constexpr Kernels table() { return {loops_of<float>(), loops_of<double>()}; }
