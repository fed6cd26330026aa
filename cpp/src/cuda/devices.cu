#include <cuda_runtime.h>

#include "centermask/cuda.h"

namespace centermask {

CudaDevices cuda_devices() {
  CudaDevices found;
  cudaRuntimeGetVersion(&found.runtime_version);
  cudaDriverGetVersion(&found.driver_version);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    found.problem = found.driver_version == 0 ? "no NVIDIA driver"
                    : status != cudaSuccess   ? cudaGetErrorString(status)
                                              : "the driver shows no device";
    cudaGetLastError();  // or the next check of a launch would report it
    return found;
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) {
      found.problem = cudaGetErrorString(cudaGetLastError());
      continue;
    }
    CudaDeviceInfo device;
    device.ordinal = ordinal;
    device.name = properties.name;
    device.compute_capability = 10 * properties.major + properties.minor;
    device.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
    found.devices.push_back(device);
  }
  return found;
}

}  // namespace centermask
