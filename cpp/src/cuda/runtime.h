// What every .cu of the core is written against. Compiled by nvcc it is CUDA; with CENTERMASK_CUDA_EMULATED it is
// tests/cpp/cuda_emulator.h, which runs the same kernels on the host, so that they are tested where no GPU is.
#pragma once

#if defined(CENTERMASK_CUDA_EMULATED)
#include "cuda_emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
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

// The same for a kernel that calls wait_for_kernel_before() (pipeline.h): with `early`, on sm_90 or newer, it may begin
// when the kernel before it on the stream says so.
template <class... Parameters, class... Arguments>
void launch_early(const char* op, bool early, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  std::size_t shared_bytes, const CudaStream& stream, const Arguments&... arguments) {
#if CUDART_VERSION >= 12030
  static const bool able = [] {  // graphs capture such launches since the driver of CUDA 12.3
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12030;
  }();
  if (!early || !able) return launch(op, kernel, grid, block, shared_bytes, stream, arguments...);
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          op, "shared memory");
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = &attribute, config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), op, "launch");
#else
  static_cast<void>(early);
  launch(op, kernel, grid, block, shared_bytes, stream, arguments...);
#endif
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

#if defined(__CUDACC__)
// Which code of this library a card runs need not be the card's own: PTX made for an older card is compiled for it by
// the driver, and has that card's instructions only. This kernel is never launched; its attributes tell. Code made for
// sm_90a has another bound than all other.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CENTERMASK_PROBE_THREADS 256
#else
#define CENTERMASK_PROBE_THREADS 128
#endif
template <int kUnused>
__global__ void __launch_bounds__(CENTERMASK_PROBE_THREADS) code_probe() {}
#undef CENTERMASK_PROBE_THREADS

// What the code that runs on the stream's device may use: `capability`, 80 for sm_80 and so on, is the lower of the
// card's and of the one that the code was made for.
struct CodeFeatures {
  int capability = 0;
  bool sm90a = false;
};

inline CodeFeatures code_features(const char* op, const CudaStream& stream) {
  constexpr int kRemembered = 64;
  static std::atomic<int> remembered[kRemembered];  // 2 * capability + sm90a; 0: not asked yet
  const bool remember = stream.device >= 0 && stream.device < kRemembered;
  int known = remember ? remembered[stream.device].load(std::memory_order_relaxed) : 0;
  if (known == 0) {
    const DeviceGuard guard(stream, op);
    cudaFuncAttributes code;
    check(cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(&code_probe<0>)), op, "cudaFuncGetAttributes");
    int capability = 10 * device_attribute(op, cudaDevAttrComputeCapabilityMajor, stream) +
                     device_attribute(op, cudaDevAttrComputeCapabilityMinor, stream);
    if (code.ptxVersion < capability) capability = code.ptxVersion;
    if (code.binaryVersion < capability) capability = code.binaryVersion;
    known = 2 * capability + (capability == 90 && code.maxThreadsPerBlock != 128 ? 1 : 0);
    if (remember) remembered[stream.device].store(known, std::memory_order_relaxed);
  }
  return {known / 2, known % 2 != 0};
}
#endif

}  // namespace centermask::cuda
#endif
