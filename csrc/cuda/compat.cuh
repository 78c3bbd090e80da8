#pragma once
// The differences between a GPU and the emulator (tests/support/emulator), hidden from kernels:
// shared memory, asynchronous copies, 16-bit numbers. All PTX of the project is written here.

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

namespace itm::cuda {

template <int kBytes>
struct alignas(kBytes) Bytes {
  unsigned char v[kBytes];
};

// Adjacent values, loaded or stored by one instruction where the hardware can.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Several {
  T v[kCount];
};
template <typename T>
using Four = Several<T, 4>;

// -- numbers --

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }
__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float logarithm_of_one_plus(float x) { return log1pf(x); }
__device__ __forceinline__ double logarithm_of_one_plus(double x) { return log1p(x); }

#ifdef __CUDACC__
__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float widen(BFloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, Half& to) {
  to.bits = __half_as_ushort(__float2half_rn(x));
}
__device__ __forceinline__ void narrow(float x, BFloat16& to) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
#else
template <typename To, typename From>
To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &x, sizeof(To));
  return to;
}
inline float widen(Half x) { return static_cast<float>(same_bits<_Float16>(x.bits)); }
inline float widen(BFloat16 x) { return same_bits<float>(static_cast<uint32_t>(x.bits) << 16); }
inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
inline void narrow(float x, Half& to) { to.bits = same_bits<uint16_t>(static_cast<_Float16>(x)); }
inline void narrow(float x, BFloat16& to) {
  const auto bits = same_bits<uint32_t>(x);
  to.bits = static_cast<uint16_t>(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}
#endif

// fp16 and bf16 are computed in fp32.
template <typename T>
using Wide = decltype(widen(T{}));

// -- shared memory and copies into it --

#ifdef __CUDACC__
// The block's shared memory. The emulator's version checks every access.
template <typename T>
class Shared {
 public:
  // A kernel calls this once. Static shared memory appears in the compiler's report and stays
  // within 48 KiB.
  template <int kCount>
  static __device__ __forceinline__ Shared all() {
    __shared__ alignas(16) unsigned char raw[kCount * sizeof(T)];
    return Shared(reinterpret_cast<T*>(raw));
  }

  template <typename Value = T>
  __device__ __forceinline__ Value read(int i) const {
    return *reinterpret_cast<const Value*>(data_ + i);
  }
  template <typename Value>
  __device__ __forceinline__ void write(int i, const Value& value) const {
    *reinterpret_cast<Value*>(data_ + i) = value;
  }

  // Copies Value from global memory asynchronously (before sm_80, synchronously); writes 0 unless
  // `there`.
  template <typename Value>
  __device__ __forceinline__ void copy_async(int i, const void* from, bool there = true) const {
#if __CUDA_ARCH__ < 800
    write(i, there ? *static_cast<const Value*>(from) : Value{});
#else
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(data_ + i));
    const int bytes = there ? sizeof(Value) : 0;
    if constexpr (sizeof(Value) == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from),
                   "n"(sizeof(Value)), "r"(bytes)
                   : "memory");
#endif
  }

 private:
  explicit __device__ __forceinline__ Shared(T* data) : data_(data) {}
  T* data_;
};

__device__ __forceinline__ void close_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies, except those of the last kOpen groups that it closed.
template <int kOpen>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
#endif
}
#endif

// blockIdx.x, read again at every call: values that a kernel's epilogue derives from it would
// otherwise occupy registers during its main loop.
__device__ __forceinline__ int64_t block_index() {
#ifdef __CUDACC__
  unsigned index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
#else
  return blockIdx.x;
#endif
}

// -- overlap of launches --

// Returns once all earlier launches have written their results; the first statement of every
// kernel. From sm_90 on, blocks arrive here while the previous launch still runs, and blocks of the
// next launch may start from here on, so a launch costs no more than the results that it waits for.
__device__ __forceinline__ void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace itm::cuda
