// The CUDA operators as they are, on the emulator instead of a device. One translation unit,
// because reading torch's headers takes most of the time.

#include "binding/wide.cpp"
#include "cuda/binding/cross_entropy.cpp"
#include "cuda/binding/intra_modal.cpp"
#include "cuda/binding/kmeans.cpp"
#include "cuda/binding/kmeans_plus_plus.cpp"
#include "cuda/binding/log_sum_exp.cpp"
#include "cuda/binding/max_of_hinges.cpp"
#include "cuda/binding/rbf_synthesis.cpp"
#include "cuda/binding/sigmoid.cpp"
#include "cuda/binding/similarity.cpp"
#include "cuda/binding/sum_of_hinges.cpp"
#include "cuda/binding/unit_rows.cpp"
