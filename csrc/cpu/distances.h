#pragma once
// Distances of rows from direct differences, and their gradients.

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "aten/wide.h"
#include "cpu/instruction_set.h"
#include "cpu/parallel.h"

namespace itm::cpu {

// out[n][m] = sum over d of |x[n][d] - y[m][d]|, or of its square.
template <typename T>
void distances(const Tensor& x, const Tensor& y, bool squared, Tensor& out) {
  const int64_t N = x.size(0), M = y.size(0), D = x.size(1);
  const auto& loop = loops<T>();
  const int64_t group = loop.group_size();
  const T *from = x.const_data_ptr<T>(), *to = y.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  parallel_for(0, (M + group - 1) / group, grain(N * D), [&](int64_t g0, int64_t g1) {
    std::vector<T> packed(group * D);
    for (int64_t g = g0; g < g1; ++g) {
      const int64_t first = g * group, columns = std::min(group, M - first);
      loop.pack_columns(to + first * D, columns, D, packed.data());
      const auto rows = squared ? loop.squared_rows : loop.l1_rows;
      rows(from, N, packed.data(), D, result + first, M, columns);
    }
  });
}

// Copies columns [first, first + size) of the rows of x densely into a panel, zeros beyond D.
// Adding 0 turns -0 into 0, so that no difference of two panels is -0.
template <typename T>
void pack_panel(const T* x, int64_t rows, int64_t D, int64_t first, int64_t size, T* panel) {
  const int64_t columns = std::min(size, D - first);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < columns; ++c) panel[n * size + c] = x[n * D + first + c] + T(0);
    std::fill(panel + n * size + columns, panel + (n + 1) * size, T(0));
  }
}

template <typename T>
void add_panel(const T* panel, int64_t rows, int64_t D, int64_t first, int64_t size, T* x) {
  const int64_t columns = std::min(size, D - first);
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t c = 0; c < columns; ++c) x[n * D + first + c] += panel[n * size + c];
}

template <typename T>
bool all_finite(const T* x, int64_t size) {
  bool finite = true;
  for (int64_t k = 0; k < size; ++k) finite &= x[k] - x[k] == 0;
  return finite;
}

// Makes to_x NaN where x - y is NaN for some row of y: the sign of NaN is NaN.
template <typename T>
void propagate_nan(const T* x, int64_t rows, const T* y, int64_t count, int64_t size, T* to_x) {
  constexpr T kInfinite = std::numeric_limits<T>::infinity();
  for (int64_t c = 0; c < size; ++c) {
    bool nan = false, highest = false, lowest = false;
    for (int64_t m = 0; m < count; ++m) {
      const T value = y[m * size + c];
      nan |= value != value, highest |= value == kInfinite, lowest |= value == -kInfinite;
    }
    for (int64_t n = 0; n < rows; ++n) {
      const T value = x[n * size + c];
      if (nan || value != value || (highest && value == kInfinite) ||
          (lowest && value == -kInfinite))
        to_x[n * size + c] = std::numeric_limits<T>::quiet_NaN();
    }
  }
}

// to_x[i] += sum over j of weight[i][j] sign(x[i] - y[j]); to_y[j], unless it is null, gets the
// negative. Threads divide the columns and, if there are fewer panels than threads, the rows.
template <typename T>
void add_signs(const Tensor& weight, const Tensor& x, const Tensor& y, Tensor& to_x, Tensor* to_y) {
  const int64_t N = x.size(0), M = y.size(0), D = x.size(1);
  const auto& loop = loops<T>();
  const int64_t size = loop.panel_size(), panels = (D + size - 1) / size;
  if (to_y && panels < at::get_num_threads()) {
    add_signs<T>(weight, x, y, to_x, nullptr);
    return add_signs<T>(weight.t().contiguous(), y, x, *to_y, nullptr);
  }
  const int64_t most = to_y ? N : 64, blocks = (N + most - 1) / most;
  const T *from = x.const_data_ptr<T>(), *to = y.const_data_ptr<T>();
  const T* w = weight.const_data_ptr<T>();
  T *x_sum = to_x.mutable_data_ptr<T>(), *y_sum = to_y ? to_y->mutable_data_ptr<T>() : nullptr;
  parallel_for(0, panels * blocks, grain(most * M * size), [&](int64_t begin, int64_t end) {
    std::vector<T> here(most * size), there(M * size), own(most * size), back(to_y ? M * size : 0);
    int64_t packed = -1;
    bool finite = true;  // the packed columns of y
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k / blocks * size, i = k % blocks * most;
      const int64_t rows = std::min(most, N - i);
      if (first != std::exchange(packed, first)) {
        pack_panel(to, M, D, first, size, there.data());
        finite = all_finite(there.data(), M * size);
      }
      pack_panel(from + i * D, rows, D, first, size, here.data());
      std::fill(own.begin(), own.end(), T(0));
      std::fill(back.begin(), back.end(), T(0));
      loop.add_sign_panels(here.data(), own.data(), rows, there.data(),
                           to_y ? back.data() : nullptr, M, w + i * M, M);
      if (!finite || !all_finite(here.data(), rows * size)) {
        propagate_nan(here.data(), rows, there.data(), M, size, own.data());
        if (to_y) propagate_nan(there.data(), M, here.data(), rows, size, back.data());
      }
      add_panel(own.data(), rows, D, first, size, x_sum + i * D);
      if (to_y) add_panel(back.data(), M, D, first, size, y_sum);
    }
  });
}

// The same for the pairs of one set of rows with symmetric weights. The two differences of a pair
// are opposite, so only one of them is computed.
template <typename T>
void add_symmetric_signs(const Tensor& weight, const Tensor& x, Tensor& to_x) {
  constexpr int64_t kRows = 64;  // rows of a block; both differences of its own pairs are computed
  const int64_t N = x.size(0), D = x.size(1);
  const auto& loop = loops<T>();
  const int64_t size = loop.panel_size(), panels = (D + size - 1) / size;
  if (panels < at::get_num_threads()) return add_signs<T>(weight, x, x, to_x, nullptr);
  const T *from = x.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
  T* result = to_x.mutable_data_ptr<T>();
  parallel_for(0, panels, grain(N * N * size), [&](int64_t begin, int64_t end) {
    std::vector<T> here(N * size), sum(N * size);
    for (int64_t k = begin; k < end; ++k) {
      pack_panel(from, N, D, k * size, size, here.data());
      std::fill(sum.begin(), sum.end(), T(0));
      for (int64_t i = 0; i < N; i += kRows) {
        const int64_t rows = std::min(kRows, N - i), j = i + rows;
        const T* own = here.data() + i * size;
        T* to = sum.data() + i * size;
        loop.add_sign_panels(own, to, rows, own, nullptr, rows, w + i * N + i, N);
        if (j < N)
          loop.add_sign_panels(own, to, rows, here.data() + j * size, sum.data() + j * size, N - j,
                               w + i * N + j, N);
      }
      if (!all_finite(here.data(), N * size))
        propagate_nan(here.data(), N, here.data(), N, size, sum.data());
      add_panel(sum.data(), N, D, k * size, size, result);
    }
  });
}

// out[i] += sum over j of weight[i][j] (x[i] - y[j])
template <typename T>
void add_differences(const Tensor& weight, const Tensor& x, const Tensor& y, Tensor& out) {
  const int64_t N = x.size(0), M = y.size(0), D = x.size(1);
  const auto& loop = loops<T>();
  const T *from = x.const_data_ptr<T>(), *to = y.const_data_ptr<T>();
  const T* w = weight.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  // Rows of y that stay in a second-level cache while the loop passes over all rows of x.
  const int64_t block = std::max<int64_t>(1, (256 << 10) / (D * static_cast<int64_t>(sizeof(T))));
  parallel_for(0, N, grain(M * D), [&](int64_t i0, int64_t i1) {
    for (int64_t j = 0; j < M; j += block)
      loop.add_all_differences(result + i0 * D, from + i0 * D, i1 - i0, to + j * D, w + i0 * M + j,
                               M, std::min(block, M - j), D);
  });
}

}  // namespace itm::cpu
