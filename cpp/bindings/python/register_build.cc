// How this extension was built, and which GPUs it can use: for `centermask doctor` and bug reports.
#include <string>

#include "array.h"
#include "centermask/cuda.h"
#include "register.h"

namespace centermask::python {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = kCompiler;
  info["cuda"] = std::string(CENTERMASK_CUDA_VERSION);  // empty: without CUDA
  py::list architectures;
  std::string name;
  for (const char letter : std::string(CENTERMASK_CUDA_ARCHITECTURES) + " ") {
    if (letter != ' ') {
      name += letter;
    } else if (!name.empty()) {
      architectures.append(name);
      name.clear();
    }
  }
  info["cuda_architectures"] = py::tuple(architectures);
  return info;
}

py::dict devices_info() {
  py::dict info;
#if defined(CENTERMASK_HAS_CUDA)
  const CudaDevices found = cuda_devices();
  py::list devices;
  for (const CudaDeviceInfo& device : found.devices) {
    py::dict entry;
    entry["ordinal"] = device.ordinal;
    entry["name"] = device.name;
    entry["compute_capability"] = device.compute_capability;
    entry["memory_bytes"] = device.memory_bytes;
    devices.append(entry);
  }
  info["devices"] = devices;
  info["problem"] = found.problem;
  info["driver"] = found.driver_version;
#else
  info["devices"] = py::list();
  info["problem"] = "built without CUDA";
  info["driver"] = 0;
#endif
  return info;
}

}  // namespace

void register_build(py::module_& module) {
  module.def("build_info", &build_info);
  module.def("cuda_devices", &devices_info);
}

}  // namespace centermask::python
