// The unchanged CUDA operators, on the emulator instead of a device. They are one translation unit,
// because parsing torch's headers takes most of the time.

#include <ATen/ops/empty.h>

#include "aten/wide.cpp"
#include "cuda/distances/intra_modal_binding.cpp"
#include "cuda/distances/similarity_binding.cpp"
#include "cuda/small_batch/imc_binding.cpp"
#include "cuda/small_batch/info_cmr_binding.cpp"
#include "cuda/small_batch/info_nce_binding.cpp"
#include "cuda/small_batch/kmeans_binding.cpp"
#include "cuda/small_batch/kmeans_plus_plus_binding.cpp"
#include "cuda/small_batch/log_sum_exp_binding.cpp"
#include "cuda/small_batch/max_of_hinges_binding.cpp"
#include "cuda/small_batch/rbf_synthesis_binding.cpp"
#include "cuda/small_batch/sigmoid_binding.cpp"
#include "cuda/small_batch/sigmoid_total_binding.cpp"
#include "cuda/small_batch/sum_of_hinges_binding.cpp"
#include "emulator.h"

// A planted fault: sums `count` + 1 values, of which the last has not been written.
namespace {
template <typename Number>
void sum_too_far(Number* values, int count, double* sum) {
  for (int i = 0; i < count; ++i) values[i] = 1;
  for (int i = 0; i <= count; ++i) *sum += static_cast<double>(values[i]);
}
}  // namespace
extern "C" double emulator_sum_too_far(int count, bool of_integers) {
  double sum = 0;
  const at::Tensor values = at::empty({count + 1}, of_integers ? at::kLong : at::kFloat);
  if (of_integers)
    emulator::launch(sum_too_far<int64_t>, {}, {}, 0, values.mutable_data_ptr<int64_t>(), count,
                     &sum);
  else
    emulator::launch(sum_too_far<float>, {}, {}, 0, values.mutable_data_ptr<float>(), count, &sum);
  return sum;
}
