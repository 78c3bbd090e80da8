#include "binding/common.h"

#include <ATen/Version.h>

namespace itm {

const cpu::Kernels& kernels() {
  static const cpu::Kernels& chosen = [&]() -> const cpu::Kernels& {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return cpu::kernels_avx512;
    if (capability == "AVX2") return cpu::kernels_avx2;
    return cpu::kernels_default;
  }();
  return chosen;
}

}  // namespace itm
