#include "cuda_emulator.h"

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "cuda_emulator_machine.h"

namespace centermask::cuda::emulator {
namespace {

// The system thread that kernels run on.
class Worker {
 public:
  Worker() : thread_([this] { loop(); }) {}
  ~Worker() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      end_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void run(const std::function<void()>& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = &job;
    changed_.notify_all();
    changed_.wait(lock, [this] { return job_ == nullptr; });
  }

 private:
  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return end_ || job_ != nullptr; });
      if (end_) return;
      (*job_)();
      job_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* job_ = nullptr;
  bool end_ = false;
  std::thread thread_;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

}  // namespace

void thread_entry() { machine().thread_main(); }

Settings& settings() {
  static Settings instance = [] {
    Settings initial;
    if (const char* seed = std::getenv("CENTERMASK_EMULATOR_SEED")) {
      initial.seed = static_cast<unsigned>(std::strtoul(seed, nullptr, 10));
    }
    return initial;
  }();
  return instance;
}

Counters& counters() {
  static Counters instance;
  return instance;
}

int shared_memory_limit(int compute_capability) {
  switch (compute_capability) {
    case 70:
    case 72: return 96 * 1024;
    case 75: return 64 * 1024;
    case 80:
    case 87: return 163 * 1024;
    case 86:
    case 89:
    case 120:
    case 121: return 99 * 1024;
    default: return compute_capability >= 90 ? 227 * 1024 : 48 * 1024;
  }
}

void run_grid(const char* op, dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const bool sizes = grid.x > 0 && grid.y > 0 && grid.z > 0 && block.x > 0 && block.y > 0 && block.z > 0;
  if (!sizes || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535 || block.x > 1024 || block.y > 1024 ||
      block.z > 64 || static_cast<long long>(block.x) * block.y * block.z > 1024) {
    fail(ErrorKind::kRuntime, op, ": launch: invalid configuration: grid (", grid.x, ",", grid.y, ",", grid.z,
         "), block (", block.x, ",", block.y, ",", block.z, ")");
  }
  const int capability = settings().compute_capability;
  if (shared_bytes > static_cast<std::size_t>(shared_memory_limit(capability))) {
    fail(ErrorKind::kRuntime, op, ": shared memory: ", shared_bytes, " bytes are more than sm_", capability, " has");
  }
  machine();  // made before the worker, so that it lives longer
  static Worker worker;
  ++counters().launches;
  worker.run([&] { machine().run(op, grid, block, shared_bytes, kernel); });
  if (!machine().failure().empty()) fail(ErrorKind::kRuntime, machine().failure());
}

void* dynamic_shared() { return machine().shared(); }
int lane() { return machine().lane(); }
void poll(bool again) { machine().poll(again); }
void stop(const char* message) { machine().abandon(message); }
int block_barrier(int id, int threads, bool vote, const char* file, int line) {
  return machine().barrier(id, threads, vote, file, line);
}
const WarpMeeting& warp_meet(unsigned mask, const void* bytes, std::size_t count, const char* name) {
  return machine().meet(mask, bytes, count, name);
}

}  // namespace centermask::cuda::emulator

namespace centermask::cuda {

void fill_bytes(const char*, void* data, int value, std::size_t bytes, const CudaStream&) {
  if (bytes > 0) std::memset(data, value, bytes);
}

int device_attribute(const char* op, cudaDeviceAttr attribute, const CudaStream&) {
  const int capability = emulator::settings().compute_capability;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: return capability / 10;
    case cudaDevAttrComputeCapabilityMinor: return capability % 10;
    case cudaDevAttrMultiProcessorCount: return emulator::settings().multiprocessors;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return emulator::shared_memory_limit(capability);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return emulator::shared_memory_limit(capability) + 1024;
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return capability == 75 ? 1024 : 2048;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrL2CacheSize: return 4 << 20;
    default: fail(ErrorKind::kRuntime, op, ": the emulator has no device attribute ", static_cast<int>(attribute));
  }
}

}  // namespace centermask::cuda
