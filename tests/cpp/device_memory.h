// Buffers on the device, for tests that run both on the emulator, where the device's memory is the host's, and on a
// GPU. Each lies between guard bytes that its destructor and download() check.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "centermask/cuda.h"

#if !defined(CENTERMASK_CUDA_EMULATED)
#include <cuda_runtime_api.h>
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define CENTERMASK_GUARDED_BY_ASAN 1  // which sees reads out of bounds as well
#endif

namespace device_memory {

#if defined(CENTERMASK_CUDA_EMULATED)
inline void* allocate(std::size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
inline void release(void* data) { std::free(data); }
inline void copy(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
inline void synchronize() {}
inline bool available() { return true; }
#else
inline void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::fflush(stdout);
  std::exit(1);
}
inline void* allocate(std::size_t bytes) {
  void* data = nullptr;
  require(cudaMalloc(&data, bytes), "cudaMalloc");
  return data;
}
inline void release(void* data) { cudaFree(data); }
inline void copy(void* to, const void* from, std::size_t bytes) {
  require(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");  // waits for the work before it
}
inline void synchronize() { require(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }
inline bool available() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}
#endif

constexpr std::size_t kGuardBytes = 256;  // keeps the alignment of cudaMalloc
constexpr unsigned char kGuard = 0xA5;

// For the first line of main(): a machine without a GPU skips the test (ctest knows the exit code), unless somebody
// relies on there being one.
inline int skip() {
  std::printf("no CUDA device\n");
  return std::getenv("CENTERMASK_REQUIRE_DEVICE") != nullptr ? 1 : 77;
}

}  // namespace device_memory

// `count` values of T. New ones are 0xFF bytes (NaN), so that what a kernel leaves out shows.
template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t count) : DeviceBuffer(std::vector<T>(), count) {}
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values, values.size()) {}
  ~DeviceBuffer() {
    if (memory_ == nullptr) return;
    check_guards();
#if defined(CENTERMASK_GUARDED_BY_ASAN)
    __asan_unpoison_memory_region(memory_, bytes() + 2 * device_memory::kGuardBytes);
#endif
    device_memory::release(memory_);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept : memory_(other.memory_), count_(other.count_) {
    other.memory_ = nullptr;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;

  T* data() const { return reinterpret_cast<T*>(memory_ + device_memory::kGuardBytes); }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

  void upload(const std::vector<T>& values) { device_memory::copy(data(), values.data(), values.size() * sizeof(T)); }
  std::vector<T> download() const {
    std::vector<T> values(count_);
    device_memory::synchronize();
    if (count_ > 0) device_memory::copy(values.data(), data(), bytes());
    check_guards();
    return values;
  }

 private:
  DeviceBuffer(const std::vector<T>& values, std::size_t count) : count_(count) {
    using namespace device_memory;
    memory_ = static_cast<unsigned char*>(allocate(bytes() + 2 * kGuardBytes));
    const std::vector<unsigned char> guard(kGuardBytes, kGuard), unset(bytes(), 0xFF);
    copy(memory_, guard.data(), kGuardBytes);
    copy(memory_ + kGuardBytes + bytes(), guard.data(), kGuardBytes);
    if (count > 0) copy(data(), values.empty() ? static_cast<const void*>(unset.data()) : values.data(), bytes());
#if defined(CENTERMASK_GUARDED_BY_ASAN)
    __asan_poison_memory_region(memory_, kGuardBytes);
    __asan_poison_memory_region(memory_ + kGuardBytes + bytes(), kGuardBytes);
#endif
  }

  void check_guards() const {
#if !defined(CENTERMASK_GUARDED_BY_ASAN)
    using namespace device_memory;
    unsigned char guards[2 * kGuardBytes];
    copy(guards, memory_, kGuardBytes);
    copy(guards + kGuardBytes, memory_ + kGuardBytes + bytes(), kGuardBytes);
    for (std::size_t i = 0; i < 2 * kGuardBytes; ++i) {
      if (guards[i] == kGuard) continue;
      std::printf("a buffer of %zu bytes was written %s\n", bytes(),
                  i < kGuardBytes ? "before its start" : "past its end");
      std::fflush(stdout);
      std::abort();
    }
#endif
  }

  unsigned char* memory_ = nullptr;
  std::size_t count_ = 0;
};
