#include "cuda_emulator.h"

#include <link.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

#include "cuda_emulator_fiber.h"

namespace centermask::cuda::emulator {
namespace {

constexpr int kBarriers = 16;
constexpr std::size_t kStackBytes = 192 * 1024;
constexpr std::size_t kCanaryBytes = 256;
constexpr unsigned char kCanary = 0xA5;

enum class State { kReady, kBarrier, kWarp, kReturned };

struct Thread {
  Fiber fiber;
  std::unique_ptr<GuardedMemory> stack;
  uint3 index = {};
  State state = State::kReturned;
  int barrier = 0;
  bool started = false;
  WarpMeeting* meeting = nullptr;  // the one it waits in, or whose outcome it reads
};

struct Barrier {
  int arrived = 0, votes = 0, wanted = 0;
  const char* file = nullptr;
  int line = 0;
  int last_votes = 0;  // of the meeting before: those who wake read it
};

struct Warp {
  unsigned alive = 0;
  std::vector<std::unique_ptr<WarpMeeting>> meetings;
};

void thread_entry();

// Runs one block at a time, on the worker's system thread.
class Machine {
 public:
  void run(const char* op, dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    failure_.clear();
    const long long blocks = static_cast<long long>(grid.x) * grid.y * grid.z;
    const int count = static_cast<int>(block.x * block.y * block.z);
    prepare(block, count, shared_bytes);
    blockDim = block;
    gridDim = grid;
    std::vector<unsigned> blocks_order;
    const unsigned seed = settings().seed;
    std::mt19937 random(seed);
    if (seed != 0) {
      blocks_order.resize(static_cast<std::size_t>(blocks));
      std::iota(blocks_order.begin(), blocks_order.end(), 0u);
      std::shuffle(blocks_order.begin(), blocks_order.end(), random);
      std::shuffle(order_.begin(), order_.end(), random);
    }
    for (long long i = 0; i < blocks && failure_.empty(); ++i) {
      const long long b = seed != 0 ? blocks_order[static_cast<std::size_t>(i)] : i;
      blockIdx.x = static_cast<unsigned>(b % grid.x);
      blockIdx.y = static_cast<unsigned>(b / grid.x % grid.y);
      blockIdx.z = static_cast<unsigned>(b / grid.x / grid.y);
      run_block(count, shared_bytes);
    }
    if (!failure_.empty()) {
      std::ostringstream where;
      where << op << ": " << failure_ << " (block " << blockIdx.x << "," << blockIdx.y << "," << blockIdx.z << ")";
      failure_ = where.str();
    }
  }

  const std::string& failure() const { return failure_; }
  void* shared() const { return shared_; }
  int lane() const { return current_ % 32; }

  void thread_main() {
    Thread& thread = *threads_[static_cast<std::size_t>(current_)];
    thread.fiber.entered(scheduler_);
    for (;;) {  // once for each block
      (*kernel_)();
      Thread& self = running();
      self.state = State::kReturned;
      leave_meeting(self);
      Warp& warp = warps_[static_cast<std::size_t>(current_ / 32)];
      warp.alive &= ~(1u << lane());
      --alive_;
      for (auto& meeting : warp.meetings) complete_if_full(*meeting, warp, current_ / 32);
      if (barriers_[0].arrived > 0) release_if_full(0);
      self.fiber.switch_to(scheduler_);
    }
  }

  int barrier(int id, int wanted, bool vote, const char* file, int line) {
    if (id < 0 || id >= kBarriers) abandon("no such barrier");
    Barrier& barrier = barriers_[id];
    if (barrier.arrived == 0) {
      barrier.file = file;
      barrier.line = line;
      barrier.wanted = wanted;
      barrier.votes = 0;
    } else if (barrier.line != line || std::strcmp(barrier.file, file) != 0 || barrier.wanted != wanted) {
      failure_ = divergent(barrier, file, line);
      abandon(nullptr);
    }
    ++barrier.arrived;
    barrier.votes += vote;
    Thread& self = running();
    self.state = State::kBarrier;
    self.barrier = id;
    if (!release_if_full(id)) self.fiber.switch_to(scheduler_);
    return barriers_[id].last_votes;
  }

  const WarpMeeting& meet(unsigned mask, const void* bytes, std::size_t count, const char* name) {
    Thread& self = running();
    const int warp_index = current_ / 32, lane_index = lane();
    Warp& warp = warps_[static_cast<std::size_t>(warp_index)];
    leave_meeting(self);
    if ((mask >> lane_index & 1u) == 0) {
      failure_ = name + (": " + describe(current_)) + " is not in its own mask";
      abandon(nullptr);
    }
    WarpMeeting* meeting = nullptr;
    for (auto& open : warp.meetings) {
      if (open->complete || open->readers > 0 || open->mask == 0) continue;
      if (open->mask == mask && std::strcmp(open->name, name) == 0) meeting = open.get();
    }
    if (meeting == nullptr) meeting = free_meeting(warp, mask, name);
    meeting->arrived |= 1u << lane_index;
    if (count > 0) std::memcpy(meeting->slots[lane_index], bytes, count);
    self.meeting = meeting;
    self.state = State::kWarp;
    if (!complete_if_full(*meeting, warp, warp_index)) self.fiber.switch_to(scheduler_);
    return *meeting;
  }

  // The thread's stack is left as it is: nothing on it may need a destructor, such as a message.
  [[noreturn]] void abandon(const char* message) {
    if (message != nullptr) failure_ = message;
    running().fiber.switch_to(scheduler_);
    std::abort();  // never resumed
  }

 private:
  Thread& running() { return *threads_[static_cast<std::size_t>(current_)]; }

  std::string describe(int thread) const {
    const uint3 index = threads_[static_cast<std::size_t>(thread)]->index;
    std::ostringstream text;
    text << "thread (" << index.x << "," << index.y << "," << index.z << ")";
    return text.str();
  }

  std::string divergent(const Barrier& barrier, const char* file, int line) const {
    std::ostringstream text;
    text << "barrier in divergent code: " << describe(current_) << " waits at " << file << ":" << line << ", others at "
         << barrier.file << ":" << barrier.line;
    return text.str();
  }

  void prepare(dim3 block, int count, std::size_t shared_bytes) {
    while (static_cast<int>(threads_.size()) < count) {
      threads_.push_back(std::make_unique<Thread>());
      threads_.back()->stack = std::make_unique<GuardedMemory>(kStackBytes);
    }
    order_.resize(static_cast<std::size_t>(count));
    std::iota(order_.begin(), order_.end(), 0);
    for (int i = 0; i < count; ++i) {
      const unsigned t = static_cast<unsigned>(i);
      threads_[t]->index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    }
    warps_.resize(static_cast<std::size_t>((count + 31) / 32));
    shared_memory_.resize(shared_bytes + kCanaryBytes + 128);
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(shared_memory_.data());
    shared_ = shared_memory_.data() + ((start + 127) / 128 * 128 - start);
  }

  void run_block(int count, std::size_t shared_bytes) {
    ++counters().blocks;
    poison_static_shared();
    std::memset(shared_, 0xFF, shared_bytes);
    std::memset(shared_ + shared_bytes, kCanary, kCanaryBytes);
    alive_ = count;
    for (Barrier& barrier : barriers_) barrier = Barrier();
    for (std::size_t w = 0; w < warps_.size(); ++w) {
      const int lanes = std::min(32, count - static_cast<int>(w) * 32);
      warps_[w].alive = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1u;
      for (auto& meeting : warps_[w].meetings) {
        meeting->mask = 0;
        meeting->readers = 0;
      }
    }
    for (int i = 0; i < count; ++i) {
      Thread& thread = *threads_[static_cast<std::size_t>(i)];
      if (!thread.started) {
        thread.fiber.create(thread.stack->data(), thread.stack->bytes(), thread_entry);
        thread.started = true;
      }
      thread.state = State::kReady;
      thread.meeting = nullptr;
    }
    while (alive_ > 0 && failure_.empty()) {
      bool progress = false;
      for (const int i : order_) {
        Thread& thread = *threads_[static_cast<std::size_t>(i)];
        if (thread.state != State::kReady) continue;
        progress = true;
        current_ = i;
        threadIdx = thread.index;
        scheduler_.switch_to(thread.fiber);
        if (!failure_.empty()) break;
      }
      if (!progress && failure_.empty()) failure_ = deadlock(count);
    }
    if (!failure_.empty()) {
      // Some threads stand in the middle of the kernel: they start afresh next time.
      for (auto& thread : threads_) thread->started = false;
      return;
    }
    for (std::size_t i = 0; i < kCanaryBytes; ++i) {
      if (shared_[shared_bytes + i] == kCanary) continue;
      failure_ = "dynamic shared memory of " + std::to_string(shared_bytes) +
                 " bytes was written past its end, at byte " + std::to_string(shared_bytes + i);
      return;
    }
  }

  std::string deadlock(int count) const {
    std::ostringstream text;
    text << "the block waits for ever:";
    int shown = 0;
    for (int i = 0; i < count; ++i) {
      const Thread& thread = *threads_[static_cast<std::size_t>(i)];
      if (thread.state == State::kReturned || (i > 0 && same_wait(thread, *threads_[static_cast<std::size_t>(i - 1)])))
        continue;
      if (++shown > 6) continue;
      text << (shown > 1 ? ", " : " ") << describe(i);
      if (thread.state == State::kBarrier) {
        const Barrier& barrier = barriers_[thread.barrier];
        text << " at the barrier of " << barrier.file << ":" << barrier.line;
      } else {
        text << " in " << thread.meeting->name << " with mask 0x" << std::hex << thread.meeting->mask << std::dec;
      }
    }
    return text.str();
  }
  static bool same_wait(const Thread& a, const Thread& b) {
    return a.state == b.state && (a.state == State::kBarrier ? a.barrier == b.barrier : a.meeting == b.meeting);
  }

  bool release_if_full(int id) {
    Barrier& barrier = barriers_[id];
    if (barrier.arrived < (barrier.wanted > 0 ? barrier.wanted : alive_)) return false;
    barrier.last_votes = barrier.votes;
    barrier.arrived = 0;
    for (const int i : order_) {
      Thread& thread = *threads_[static_cast<std::size_t>(i)];
      if (thread.state == State::kBarrier && thread.barrier == id) thread.state = State::kReady;
    }
    return true;
  }

  bool complete_if_full(WarpMeeting& meeting, Warp& warp, int warp_index) {
    if (meeting.mask == 0 || meeting.complete || meeting.readers > 0) return false;
    if ((meeting.mask & warp.alive & ~meeting.arrived) != 0) return false;
    meeting.complete = true;
    for (int i = 0; i < 32; ++i) {
      const std::size_t t = static_cast<std::size_t>(warp_index * 32 + i);
      if ((meeting.arrived >> i & 1u) == 0 || threads_[t]->meeting != &meeting) continue;
      ++meeting.readers;
      threads_[t]->state = State::kReady;
    }
    return true;
  }

  WarpMeeting* free_meeting(Warp& warp, unsigned mask, const char* name) {
    WarpMeeting* meeting = nullptr;
    for (auto& candidate : warp.meetings) {
      if (candidate->mask == 0) meeting = candidate.get();
    }
    if (meeting == nullptr) {
      warp.meetings.push_back(std::make_unique<WarpMeeting>());
      meeting = warp.meetings.back().get();
    }
    std::memset(meeting->slots, 0xFF, sizeof(meeting->slots));
    meeting->mask = mask;
    meeting->arrived = 0;
    meeting->readers = 0;
    meeting->name = name;
    meeting->complete = false;
    return meeting;
  }

  void leave_meeting(Thread& thread) {
    if (thread.meeting != nullptr && --thread.meeting->readers == 0) thread.meeting->mask = 0;
    thread.meeting = nullptr;
  }

  // All thread-local variables of the program, as this system thread sees them: the kernels' static shared memory.
  void poison_static_shared() {
    if (!looked_for_static_) {
      looked_for_static_ = true;
      dl_iterate_phdr(
          [](dl_phdr_info* info, std::size_t, void* self) {
            for (int i = 0; i < info->dlpi_phnum; ++i) {
              if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
              static_cast<Machine*>(self)->static_shared_ = static_cast<unsigned char*>(info->dlpi_tls_data);
              static_cast<Machine*>(self)->static_bytes_ = info->dlpi_phdr[i].p_memsz;
            }
            return 1;  // the first is the program itself
          },
          this);
    }
    if (static_shared_ != nullptr) std::memset(static_shared_, 0xFF, static_bytes_);
  }

  const std::function<void()>* kernel_ = nullptr;
  Fiber scheduler_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<int> order_;
  std::vector<Warp> warps_;
  Barrier barriers_[kBarriers];
  std::vector<unsigned char> shared_memory_;
  unsigned char* shared_ = nullptr;
  unsigned char* static_shared_ = nullptr;
  std::size_t static_bytes_ = 0;
  bool looked_for_static_ = false;
  int current_ = 0, alive_ = 0;
  std::string failure_;
};

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

void thread_entry() { machine().thread_main(); }

}  // namespace

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
