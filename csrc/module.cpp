// Properties of this build: compiler, C++ standard, torch, OpenMP and CUDA. No tensor crosses this
// module; kernels register themselves with the dispatcher. The noise of sampling is exposed word by
// word, for tests.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <array>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/hardest_negatives.h"
#include "cpu/score_tiles.h"

namespace py = pybind11;

namespace {

// What the GPU kernels are compiled for, as in TORCH_CUDA_ARCH_LIST: "9.0", "12.0+PTX".
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

std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& c, const std::array<uint32_t, 2>& k) {
  const auto w = itm::cpu::philox({c[0], c[1], c[2], c[3]}, k[0], k[1]);
  return {w.a, w.b, w.c, w.d};
}

std::vector<float> gumbel(const std::vector<uint32_t>& words) {
  std::vector<float> noise(words.size());
  itm::kernels().gumbel(words.data(), noise.data(), static_cast<int64_t>(words.size()));
  return noise;
}

std::string instruction_set() { return itm::kernels().instruction_set; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto* table : itm::cpu::kTables)
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
  m.def("bf16_screening", &itm::screening_possible,
        "Returns whether hardest negatives are found by bf16 products first, as on this processor "
        "they are fast.");
  m.def("instruction_set", &instruction_set,
        "Returns the instruction set whose loops run, in ATen's spelling.");
  m.def("instruction_sets", &instruction_sets,
        "Returns the instruction sets whose loops this CPU can run, the highest first.");
  m.def("philox", &philox, py::arg("counter"), py::arg("key"),
        "Returns the four words of Philox4x32-10, for tests of the generator.");
  m.def("gumbel", &gumbel, py::arg("words"),
        "Returns the noise that random words become on this processor, for tests of its tails.");
}
