// Small things that the forward and the backward driver share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "centermask/deform_conv2d.h"
#include "centermask/error.h"
#include "centermask/isa.h"
#include "centermask/parallel.h"

namespace centermask::deform {

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
inline std::int64_t align_up(std::int64_t a, std::int64_t step) { return divide_up(a, step) * step; }

// Lays out parts of a workspace one after the other, each on a cache line. Run once to learn the size, with no memory,
// and again to get the addresses.
class Layout {
 public:
  explicit Layout(void* memory = nullptr)
      : base_(memory == nullptr
                  ? 0
                  : align_up(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory)), kLine)) {}

  void* take(std::int64_t bytes) {
    const std::int64_t at = used_;
    // One line of slack: kernels read whole vectors.
    used_ += align_up(bytes, kLine) + kLine;
    return base_ == 0 ? nullptr : reinterpret_cast<void*>(static_cast<std::uintptr_t>(base_ + at));
  }
  std::size_t bytes() const { return static_cast<std::size_t>(used_ + kLine); }

 private:
  static constexpr std::int64_t kLine = 64;
  std::int64_t base_;
  std::int64_t used_ = 0;
};

inline void check_workspace(const Workspace& workspace, std::size_t needed) {
  if (workspace.bytes < needed || workspace.data == nullptr) {
    fail(ErrorKind::kValue, "deform_conv2d: the workspace must have ", needed, " bytes, got ", workspace.bytes);
  }
}

inline void check_cpu(const TensorView& view, const char* name) {
  if (view.present() && view.device.type != DeviceType::kCpu) {
    fail(ErrorKind::kValue, "deform_conv2d: ", name, " must be on the CPU");
  }
}

// Runs work(i, slot) for each i: `slot` numbers the threads that work at once, for scratch. Each begins with a share of
// neighbours, since they use the same memory, and then takes what is left of the others' shares.
template <class Work>
void for_each_with_slot(const ParallelFor& parallel_for, std::int64_t count, Work&& work) {
  constexpr std::int64_t kMostShares = 64;
  struct alignas(64) Share {
    std::atomic<std::int64_t> next{0};
  };
  Share shares[kMostShares];
  const std::int64_t slots = count < parallel_for.threads ? count : parallel_for.threads;
  const std::int64_t share_count = slots < kMostShares ? slots : kMostShares;
  const auto begin = [=](std::int64_t share) { return share * count / share_count; };
  for (std::int64_t i = 0; i < share_count; ++i) shares[i].next.store(begin(i));
  parallel_for(slots, [&](std::int64_t slot) {
    for (std::int64_t k = 0; k < share_count; ++k) {
      const std::int64_t share = (slot + k) % share_count, end = begin(share + 1);
      for (std::int64_t i = shares[share].next++; i < end; i = shares[share].next++) work(i, slot);
    }
  });
}

}  // namespace centermask::deform
