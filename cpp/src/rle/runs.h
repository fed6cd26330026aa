// What the files of this folder share: checked runs, and the way from positions to runs.
#pragma once

#include <cstdint>
#include <vector>

#include "centermask/error.h"
#include "centermask/tensor_view.h"

namespace centermask::rle {

struct Runs {
  const std::uint32_t* data = nullptr;
  std::int64_t count = 0;
};

// A pixel position at which the mask changes, column-major. A list of them is sorted, without repeats.
using Toggles = std::vector<std::uint32_t>;

// Bounds of the pixels inside; empty where x1 <= x0.
struct Bounds {
  std::int64_t x0 = 0, y0 = 0, x1 = 0, y1 = 0;
};

// check.cc. `op` and `argument` are for the messages.
std::int64_t pixel_count(const char* op, std::int64_t height, std::int64_t width);
void check_vector(const TensorView& view, DType dtype, const char* op, const char* argument);
Runs checked_runs(const TensorView& view, const char* op, const char* argument);
std::int64_t total(Runs runs);
void check_total(Runs runs, std::int64_t height, std::int64_t width, const char* op, const char* argument);
// `offsets` start at 0, never fall, and end within `length`.
void check_offsets(const TensorView& offsets, std::int64_t length, const char* op, const char* argument);

// measure.cc
Bounds bounds_of(Runs runs, std::int64_t height);

// A change at `position`; two changes at the same place are none.
inline void toggle_at(Toggles& toggles, std::uint32_t position) {
  if (!toggles.empty() && toggles.back() == position) {
    toggles.pop_back();
  } else {
    toggles.push_back(position);
  }
}

// Writes runs while they fit, and counts them all.
class RunWriter {
 public:
  explicit RunWriter(const TensorView& view) : data_(view.ptr<std::uint32_t>()), capacity_(view.shape[0]) {}

  void push(std::uint32_t run) {
    if (count_ < capacity_) data_[count_] = run;
    ++count_;
  }

  std::int64_t count() const { return count_; }

 private:
  std::uint32_t* data_;
  std::int64_t capacity_;
  std::int64_t count_ = 0;
};

inline void write_runs(const Toggles& toggles, std::int64_t pixels, RunWriter& writer) {
  std::uint32_t last = 0;
  for (std::uint32_t position : toggles) {
    if (position >= pixels) break;  // a change behind the last pixel changes nothing
    writer.push(position - last);
    last = position;
  }
  writer.push(static_cast<std::uint32_t>(pixels - last));
}

}  // namespace centermask::rle
