// Memory instructions beyond what CUDA C++ has: one instruction to a function, each with a twin for the emulator.
#pragma once

#include "cuda/runtime.h"

// The instruction came with CUDA 12.1.
#if !defined(CENTERMASK_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    (__CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 1))
#define CENTERMASK_HAVE_RED_VECTOR 1
#else
#define CENTERMASK_HAVE_RED_VECTOR 0
#endif

namespace centermask::cuda {

// Atomically adds four floats to device memory, 16-byte aligned; one instruction from sm_90 on. Each float is atomic on
// its own. The compiler may move loads across it: kernels that add to memory must not read it.
__device__ __forceinline__ void add_float4(float* to, float x, float y, float z, float w) {
#if CENTERMASK_HAVE_RED_VECTOR
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "f"(x), "f"(y), "f"(z), "f"(w));
#else
  atomicAdd(to, x);
  atomicAdd(to + 1, y);
  atomicAdd(to + 2, z);
  atomicAdd(to + 3, w);
#endif
}

}  // namespace centermask::cuda
