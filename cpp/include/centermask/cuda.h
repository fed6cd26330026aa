// Where CUDA work goes. The *_cuda functions are in the library only where it was built with CENTERMASK_CUDA=ON.
//
// All of them enqueue on the caller's stream and return without waiting; they allocate nothing, never synchronise and
// can be captured in a CUDA graph. Every launch is checked; a failed one throws Error(kRuntime).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace centermask {

struct CudaStream {
  void* handle = nullptr;  // cudaStream_t; null is the legacy default stream
  int device = 0;          // the ordinal that the stream and all the tensors belong to
};

struct CudaDeviceInfo {
  int ordinal = 0;
  std::string name;
  int compute_capability = 0;  // 80 for sm_80
  std::int64_t memory_bytes = 0;
};

struct CudaDevices {
  std::vector<CudaDeviceInfo> devices;
  std::string problem;      // why there are none: no driver, a driver too old, ...
  int driver_version = 0;   // newest CUDA that the driver runs: 12040 is 12.4; 0 without a driver
  int runtime_version = 0;  // of the CUDA that the library was built with
};

// What this process can use. Throws nothing.
CudaDevices cuda_devices();

}  // namespace centermask
