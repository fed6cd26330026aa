// One block at a time: threads as fibers, barriers and meetings of warps. For cuda_emulator.cc alone.
#pragma once

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_emulator.h"
#include "cuda_emulator_fiber.h"

namespace centermask::cuda::emulator {

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
  bool polls = false;              // came back without having found what it looks for
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

void thread_entry();  // what a fiber begins with: machine().thread_main()

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

  // Lets the others run, as a thread does that looks at memory until it changes. `again`: and has
  // done so before in vain.
  void poll(bool again) {
    Thread& self = running();
    self.polls = again;
    self.fiber.switch_to(scheduler_);
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
        current_ = i;
        threadIdx = thread.index;
        thread.polls = false;
        scheduler_.switch_to(thread.fiber);
        progress = progress || !thread.polls;
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
      if (thread.state == State::kReady) {
        text << " polls memory";
      } else if (thread.state == State::kBarrier) {
        const Barrier& barrier = barriers_[thread.barrier];
        text << " at the barrier of " << barrier.file << ":" << barrier.line;
      } else {
        text << " in " << thread.meeting->name << " with mask 0x" << std::hex << thread.meeting->mask << std::dec;
      }
    }
    return text.str();
  }
  static bool same_wait(const Thread& a, const Thread& b) {
    if (a.state != b.state || a.state == State::kReady) return a.state == b.state;
    return a.state == State::kBarrier ? a.barrier == b.barrier : a.meeting == b.meeting;
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

  // All thread-local variables of this program or shared library, as this system thread sees them: the kernels' static
  // shared memory.
  void poison_static_shared() {
    if (!looked_for_static_) {
      looked_for_static_ = true;
      static thread_local volatile unsigned char anchor = 0;  // one of them
      anchor = 1;
      anchor_ = const_cast<unsigned char*>(&anchor);
      dl_iterate_phdr(
          [](dl_phdr_info* info, std::size_t, void* data) {
            Machine& self = *static_cast<Machine*>(data);
            for (int i = 0; i < info->dlpi_phnum; ++i) {
              unsigned char* start = static_cast<unsigned char*>(info->dlpi_tls_data);
              const std::size_t bytes = info->dlpi_phdr[i].p_memsz;
              if (info->dlpi_phdr[i].p_type != PT_TLS || self.anchor_ < start || self.anchor_ >= start + bytes)
                continue;
              self.static_shared_ = start;
              self.static_bytes_ = bytes;
            }
            return 0;
          },
          this);
      if (static_shared_ == nullptr) failure_ = "the emulator does not find the static shared memory";
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
  unsigned char* anchor_ = nullptr;
  std::size_t static_bytes_ = 0;
  bool looked_for_static_ = false;
  int current_ = 0, alive_ = 0;
  std::string failure_;
};

}  // namespace centermask::cuda::emulator
