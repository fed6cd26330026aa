// CUDA kernels on the host, for tests where no GPU is: cpp/src/cuda/runtime.h includes this in its place where
// CENTERMASK_CUDA_EMULATED is defined, and then g++ compiles the same .cu files.
//
// A block's threads are fibers, run one after another on one system thread. A thread runs until it meets a barrier or
// a warp intrinsic, so that a missing barrier shows: shared memory is filled with 0xFF (NaN) before each block, and
// whoever reads too early reads that. What is undefined in CUDA is an error here where it can be seen, thrown by
// launch(): barriers in divergent code, a warp intrinsic that not all lanes of its mask reach, writing past the dynamic
// shared memory, launches beyond the device's limits. Not seen: races that this order of threads hides (run the test
// with another settings().seed too), misaligned addresses and global memory out of bounds (the sanitizer build does).
//
//   cuda_emulator.h / .cc      settings, launches
//   cuda_emulator_machine.h    a block: threads, barriers, meetings of warps (on cuda_emulator_fiber.h)
//   cuda_emulator_warp.h       shuffles, votes, warp_exchange() for twins of inline PTX
//   cuda_emulator_device.h     atomics, arithmetic and bit intrinsics
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>
// after the two above
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "centermask/cuda.h"
#include "centermask/error.h"

// ---- the language ----
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline
// Thread-local, since all such variables of a program lie together: that is how the emulator finds and poisons them.
// Kernels run on a system thread of their own, whose other thread-local variables nobody uses.
#define __shared__ static thread_local
#define CENTERMASK_DYNAMIC_SHARED(name) \
  unsigned char* name = static_cast<unsigned char*>(centermask::cuda::emulator::dynamic_shared())
// What `#if __CUDA_ARCH__` in a kernel sees. settings().compute_capability is what the host code sees.
#define __CUDA_ARCH__ 900

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace centermask::cuda::emulator {

struct Settings {
  int compute_capability = 90;
  int code_capability = 0;  // of the card that the code was made for, if it is an older one's PTX
  bool sm90a = true;        // whether sm_90 finds code made for it alone
  int multiprocessors = 4;
  // 0 runs blocks and threads in order. Others shuffle them; CENTERMASK_EMULATOR_SEED in the environment sets it too.
  unsigned seed = 0;
};
Settings& settings();

struct Counters {
  long long launches = 0;  // kernels, without fill_bytes
  long long blocks = 0;
};
Counters& counters();

// Runs a kernel. Throws Error(kRuntime) for whatever went wrong in it.
void run_grid(const char* op, dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

void* dynamic_shared();

// Waits until all threads of the block that have not returned are here: at the same line, if `line` is not 0.
// Barrier 0 is __syncthreads. `threads` > 0 waits for so many instead (bar.sync id, threads). Returns how many of them
// gave `vote`.
int block_barrier(int id, int threads, bool vote, const char* file, int line);

// For a thread that looks at memory until another one changes it: lets the others run. `again`: it has waited for this
// before. If all threads that are left do nothing but wait again, the block waits for ever, which is an error.
void poll(bool again);

// Ends the launch with this message; for use in kernels, whose objects are not destroyed then.
[[noreturn]] void stop(const char* message);

int shared_memory_limit(int compute_capability);  // bytes that a block may ask for

// One meeting of lanes in a warp: what each of them brought. Valid until the lane's next meeting.
constexpr int kWarpSlotBytes = 64;
struct alignas(16) WarpMeeting {
  unsigned char slots[32][kWarpSlotBytes];
  unsigned mask = 0;     // of lanes that are to come
  unsigned arrived = 0;  // lanes that brought something
  int readers = 0;
  const char* name = nullptr;
  bool complete = false;
};
const WarpMeeting& warp_meet(unsigned mask, const void* bytes, std::size_t count, const char* name);
int lane();  // of the running thread, in its warp

}  // namespace centermask::cuda::emulator

#define CENTERMASK_EMULATED_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CENTERMASK_EMULATED_CALLER) {
  centermask::cuda::emulator::block_barrier(0, 0, false, file, line);
}
inline int __syncthreads_count(int vote, CENTERMASK_EMULATED_CALLER) {
  return centermask::cuda::emulator::block_barrier(0, 0, vote != 0, file, line);
}
inline int __syncthreads_or(int vote, CENTERMASK_EMULATED_CALLER) {
  return centermask::cuda::emulator::block_barrier(0, 0, vote != 0, file, line) > 0;
}
inline int __syncthreads_and(int vote, CENTERMASK_EMULATED_CALLER) {
  return centermask::cuda::emulator::block_barrier(0, 0, vote == 0, file, line) == 0;
}
#undef CENTERMASK_EMULATED_CALLER

// ---- the interface of cpp/src/cuda/runtime.h ----
namespace centermask::cuda {

inline void check(cudaError_t status, const char* op, const char* what) {
  if (status != cudaSuccess) fail(ErrorKind::kRuntime, op, ": ", what, ": CUDA error ", static_cast<int>(status));
}

class DeviceGuard {
 public:
  DeviceGuard(const CudaStream& stream, const char* op) {
    if (stream.device != 0) fail(ErrorKind::kRuntime, op, ": the emulator has one device, got ", stream.device);
  }
  ~DeviceGuard() {}
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
};

template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            const CudaStream&, const Arguments&... arguments) {
  emulator::run_grid(op, grid, block, shared_bytes, [&] { kernel(arguments...); });
}
template <class... Parameters, class... Arguments>
void launch_early(const char* op, bool, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                  const CudaStream& stream, const Arguments&... arguments) {
  launch(op, kernel, grid, block, shared_bytes, stream, arguments...);
}

void fill_bytes(const char* op, void* data, int value, std::size_t bytes, const CudaStream& stream);
int device_attribute(const char* op, cudaDeviceAttr attribute, const CudaStream& stream);

struct CodeFeatures {
  int capability = 0;
  bool sm90a = false;
};

inline CodeFeatures code_features(const char*, const CudaStream&) {
  const emulator::Settings& s = emulator::settings();
  const bool older = s.code_capability > 0 && s.code_capability < s.compute_capability;
  const int capability = older ? s.code_capability : s.compute_capability;
  return {capability, s.sm90a && capability == 90};
}

}  // namespace centermask::cuda

#include "cuda_emulator_device.h"
#include "cuda_emulator_warp.h"
