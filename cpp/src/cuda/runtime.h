// What every .cu of the core is written against. Compiled by nvcc it is CUDA; with CENTERMASK_CUDA_EMULATED it is
// tests/cpp/cuda_emulator.h, which runs the same kernels on the host, so that they are tested where no GPU is.
#pragma once

#if defined(CENTERMASK_CUDA_EMULATED)
#include "cuda_emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>

#include "centermask/cuda.h"
#include "centermask/error.h"

// The block's dynamic shared memory as `unsigned char* name`, aligned to 128 bytes.
#define CENTERMASK_DYNAMIC_SHARED(name)                           \
  extern __shared__ __align__(128) unsigned char name##_memory[]; \
  unsigned char* name = name##_memory

namespace centermask::cuda {

inline void check(cudaError_t status, const char* op, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next launch, which may be anybody's, would report it once more
  fail(ErrorKind::kRuntime, op, ": ", what, ": ", cudaGetErrorString(status));
}

// Makes the stream's device the current one for as long as it lives.
class DeviceGuard {
 public:
  DeviceGuard(const CudaStream& stream, const char* op) {
    check(cudaGetDevice(&before_), op, "cudaGetDevice");
    if (before_ != stream.device) check(cudaSetDevice(stream.device), op, "cudaSetDevice");
    changed_ = before_ != stream.device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

#if defined(__CUDACC__)  // the rest may be included by a .cc
// launch("decode_centers", kernel, grid, block, dynamic shared bytes, stream, arguments...)
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            const CudaStream& stream, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          op, "shared memory");
  }
  // clang-format off
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream.handle)>>>(arguments...);
  // clang-format on
  check(cudaGetLastError(), op, "launch");
}
#endif

// Sets device memory to a byte, on the stream.
inline void fill_bytes(const char* op, void* data, int value, std::size_t bytes, const CudaStream& stream) {
  if (bytes > 0) check(cudaMemsetAsync(data, value, bytes, static_cast<cudaStream_t>(stream.handle)), op, "memset");
}

// cudaDevAttr* of the stream's device.
inline int device_attribute(const char* op, cudaDeviceAttr attribute, const CudaStream& stream) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, stream.device), op, "cudaDeviceGetAttribute");
  return value;
}

// 80 for sm_80, and so on.
inline int compute_capability(const char* op, const CudaStream& stream) {
  return 10 * device_attribute(op, cudaDevAttrComputeCapabilityMajor, stream) +
         device_attribute(op, cudaDevAttrComputeCapabilityMinor, stream);
}

}  // namespace centermask::cuda
#endif
