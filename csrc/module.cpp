// The Python module itm_kernels._C, which describes this build of the extension: compiler, C++
// standard, torch, OpenMP and CUDA. No tensor crosses it: kernels register themselves with the
// dispatcher.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/hardest_negatives.h"
#include "cpu/instruction_set.h"

namespace py = pybind11;

namespace {

// Returns the architectures of the GPU kernels in the format of TORCH_CUDA_ARCH_LIST: "9.0",
// "12.0+PTX".
std::vector<std::string> cuda_architectures() {
#define ITM_WORDS(...) #__VA_ARGS__
#define ITM_WORDS_OF(...) ITM_WORDS(__VA_ARGS__)
#ifdef ITM_CUDA_ARCHITECTURES
  std::istringstream words(ITM_WORDS_OF(ITM_CUDA_ARCHITECTURES));
#else
  std::istringstream words;
#endif
  std::vector<std::string> found;
  for (std::string word; std::getline(words, word, ',');) {
    word.erase(0, word.find_first_not_of(' '));
    found.push_back(word);
  }
  return found;
}

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
#ifdef ITM_WITH_CUDA
  constexpr bool cuda = true;
#else
  constexpr bool cuda = false;
#endif
  py::dict info;
  info["compiler"] = compiler();
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["torch"] = TORCH_VERSION;
  info["openmp"] = openmp;
  info["cuda"] = cuda;
  info["cuda_architectures"] = cuda_architectures();
  return info;
}

std::string instruction_set() { return itm::cpu::loop_table().instruction_set; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto* table : itm::simd::kLoopTables)
    if (table->runs_here()) names.push_back(table->instruction_set);
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of itm_kernels.";
  m.def(
      "build_info", &build_info,
      "Returns the compiler, C++ standard, torch version, OpenMP and CUDA state of this build, and "
      "the architectures of its CUDA kernels.");
  m.def("bf16_screening", &itm::cpu::screening_possible,
        "Returns whether hardest negatives are screened by bf16 products, which are fast on this "
        "processor.");
  m.def("instruction_set", &instruction_set,
        "Returns the instruction set of the loops in use, in ATen's spelling.");
  m.def("instruction_sets", &instruction_sets,
        "Returns the instruction sets that this CPU supports, the highest first.");
}
