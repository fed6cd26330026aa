// Where the mask of one instance begins and ends in a strip of pixel columns, one for each thread of a block.
//
// Positions are column-major, x * height + y. The changes that belong to a pixel column are between its pixels and,
// where the window has the image's full height, between its first pixel and the last one of the column before; so runs
// that go on from one column to the next are one run without further care, and each strip but the first walks one
// column more than it counts.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "masks/columns.cuh"

namespace centermask::masks::device {

inline constexpr int kStrip = kThreads - 1;  // pixel columns that a block counts; thread 0 has the column before them
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Of one instance and strip. `last` is the position of the last change, and 0 where there is none.
struct alignas(8) Record {
  std::uint32_t count, last;
};

// Changes in and before something; both grow from thread to thread.
struct Changes {
  std::uint32_t count, last;
};

__device__ inline Changes together(const Changes& a, const Changes& b) {
  return {a.count + b.count, a.last > b.last ? a.last : b.last};
}

struct BlockChanges {
  Changes before, total;
};

// The changes of the threads before this one, and of all. All threads call this.
__device__ inline BlockChanges scan_block(const Changes& mine) {
  __shared__ Changes warps[kThreads / 32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Changes sum = mine;
  for (unsigned step = 1; step < 32; step *= 2) {
    const Changes other = {__shfl_up_sync(kAllLanes, sum.count, step), __shfl_up_sync(kAllLanes, sum.last, step)};
    if (lane >= step) sum = together(sum, other);
  }
  const Changes left = {__shfl_up_sync(kAllLanes, sum.count, 1), __shfl_up_sync(kAllLanes, sum.last, 1)};
  BlockChanges result = {lane > 0 ? left : Changes{0, 0}, {0, 0}};
  __syncthreads();  // whoever still reads the sums of a call before
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  for (unsigned i = 0; i < kThreads / 32; ++i) {
    if (i == warp) result.before = together(result.total, result.before);
    result.total = together(result.total, warps[i]);
  }
  return result;
}

// One strip of one instance: what count_runs and write_runs have in common.
template <MaskHead kHead>
class Strip {
 public:
  __device__ Strip(Columns<kHead>& columns, std::int64_t strip, std::int64_t height, std::uint32_t pixels)
      : columns_(columns), window_(columns.window()), pixels_(pixels) {
    const std::int64_t first = window_.x_begin + strip * kStrip, end = first + kStrip;
    exists_ = !window_.empty() && first < window_.x_end;
    if (!exists_) return;
    joined_ = window_.y_begin == 0 && window_.y_end == height;
    column_ =
        columns.begin(first - 1, joined_ && strip > 0 ? first - 1 : first, end < window_.x_end ? end : window_.x_end);
    start_ = static_cast<std::uint64_t>(column_.x) * static_cast<std::uint64_t>(height);
  }

  __device__ bool exists() const { return exists_; }

  // Counts the changes of this thread's pixel column.
  __device__ Changes count() {
    __shared__ bool bottoms[kThreads];
    bool top = false, side = false;
    Changes changes = {0, 0};
    for (std::int64_t first = 0;; first = columns_.next_tile()) {
      columns_.load_tile(first);
      if (column_.valid) {
        columns_.walk(column_, side, [&](std::uint32_t y) {
          if (y == window_.y_begin) {
            top = true;
          } else {
            change(changes, y);
          }
        });
      }
      if (columns_.last_tile()) break;
    }
    bottoms[threadIdx.x] = side;
    __syncthreads();
    before_ = joined_ && threadIdx.x > 0 && bottoms[threadIdx.x - 1];
    if (!column_.valid || threadIdx.x == 0) return {0, 0};
    if (side && ends()) change(changes, static_cast<std::uint32_t>(window_.y_end));
    if (top != before_) {
      if (changes.count == 0)
        changes.last = static_cast<std::uint32_t>(start_) + static_cast<std::uint32_t>(window_.y_begin);
      ++changes.count;
    }
    return changes;
  }

  // After count(): writes the run before each change. `last` is the position of the change before, `end` the place of
  // the first run that is not this strip's.
  __device__ void write(std::uint32_t* runs, std::int64_t at, std::int64_t end, std::uint32_t last) {
    const bool writes = column_.valid && threadIdx.x > 0;
    bool side = before_;
    const auto emit = [&](std::uint32_t y) {
      const std::uint64_t position = start_ + y;
      if (position >= pixels_ || at >= end) return;
      runs[at++] = static_cast<std::uint32_t>(position) - last;
      last = static_cast<std::uint32_t>(position);
    };
    for (std::int64_t first = 0;; first = columns_.next_tile()) {
      if (!columns_.one_tile()) columns_.load_tile(first);
      if (writes) columns_.walk(column_, side, emit);
      if (columns_.last_tile()) break;
    }
    if (writes && side && ends()) emit(static_cast<std::uint32_t>(window_.y_end));
  }

 private:
  // Whether a run that reaches the window's last row ends there; otherwise the next pixel column decides.
  __device__ bool ends() const { return !joined_ || column_.x + 1 == window_.x_end; }

  __device__ void change(Changes& changes, std::uint32_t y) const {
    const std::uint64_t position = start_ + y;
    if (position >= pixels_) return;  // a run that reaches the last pixel ends by itself
    ++changes.count;
    changes.last = static_cast<std::uint32_t>(position);
  }

  Columns<kHead>& columns_;
  const Window& window_;
  std::uint32_t pixels_;
  bool exists_ = false;
  bool joined_ = false;  // the window has the image's full height
  bool before_ = false;  // the side of the pixel before this column's first, where joined
  Column column_{};
  std::uint64_t start_ = 0;
};

}  // namespace centermask::masks::device
