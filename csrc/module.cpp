// What this build of the extension is: compiler, standard, torch, OpenMP, and the operators it has
// kernels for. No tensor crosses this module; kernels register themselves with the dispatcher.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <string>
#include <vector>

namespace py = pybind11;

namespace {

// Operators with kernels, per device: itm_kernels.backends offers what stands here, nothing else.
const std::vector<std::string> cpu_operators = {
    "hardest_negatives",    "intra_modal", "log_sum_exp", "max_of_hinges", "rbf_synthesis",
    "rbf_synthesis_logits", "sigmoid",     "similarity",  "sum_of_hinges"};
const std::vector<std::string> cuda_operators = {};

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
#ifdef _OPENMP
  constexpr bool openmp = true;
#else
  constexpr bool openmp = false;
#endif
  py::dict operators;
  operators["cpu"] = cpu_operators;
  operators["cuda"] = cuda_operators;

  py::dict info;
  info["compiler"] = compiler();
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["torch"] = TORCH_VERSION;
  info["openmp"] = openmp;
  info["cuda"] = !cuda_operators.empty();
  info["operators"] = operators;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of itm_kernels.";
  m.def("build_info", &build_info,
        "Returns the compiler, C++ standard, torch version, OpenMP and CUDA state of this build, "
        "and per device the operators it has kernels for.");
}
