// Memory instructions beyond what CUDA C++ has: one instruction to a function, each with a twin for the emulator.
#pragma once

#include "cuda/runtime.h"

namespace centermask::cuda {

// Atomically adds four floats to device memory, 16-byte aligned; one instruction from sm_90 on. Each float is atomic on
// its own.
__device__ __forceinline__ void add_float4(float* to, const float4& value) {
#if !defined(CENTERMASK_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "f"(value.x), "f"(value.y), "f"(value.z),
               "f"(value.w)
               : "memory");
#else
  atomicAdd(to, value.x);
  atomicAdd(to + 1, value.y);
  atomicAdd(to + 2, value.z);
  atomicAdd(to + 3, value.w);
#endif
}

}  // namespace centermask::cuda
