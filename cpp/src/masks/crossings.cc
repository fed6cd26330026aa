// Down one pixel column, the field is linear between two rows of cells, so it crosses the threshold there at most once,
// at a place that one division gives. All pixel columns between the same two columns of cells share which gaps
// between rows can hold a crossing at all: those whose four corners are not on one side.
#include "masks/crossings.h"

#include <cmath>

namespace centermask::masks {

namespace {

// The side of a row of cells, between a left and a right cell.
enum Kind : std::uint8_t {
  kOutside,  // both below the threshold
  kInside,   // neither is
  kMixed,    // it depends on the pixel column
  kBroken,   // one is not finite: nothing that is interpolated from it is inside
};

Kind kind_of(double left, double right) {
  if (!std::isfinite(left) || !std::isfinite(right)) return kBroken;
  if (left >= 0 && right >= 0) return kInside;
  return left >= 0 || right >= 0 ? kMixed : kOutside;
}

class Emitter {
 public:
  Emitter(std::vector<std::uint32_t>& toggles, std::int64_t height) : toggles_(toggles), height_(height) {}

  void begin_column(std::int64_t x) { offset_ = x * height_; }

  void toggle(std::int64_t y) {
    const auto position = static_cast<std::uint32_t>(offset_ + y);
    if (!toggles_.empty() && toggles_.back() == position) {
      toggles_.pop_back();
    } else {
      toggles_.push_back(position);
    }
  }

 private:
  std::vector<std::uint32_t>& toggles_;
  std::int64_t height_;
  std::int64_t offset_ = 0;
};

// The first pixel of [low, high] at which the side has changed, for a crossing at the real place `y`: the first at or
// behind it where the mask begins, the first behind it where the mask ends. NaN gives `low`.
std::int64_t change_at(double y, bool begins, std::int64_t low, std::int64_t high) {
  if (!(y >= static_cast<double>(low))) return low;
  if (y >= static_cast<double>(high)) return high;
  const auto whole = static_cast<std::int64_t>(y);  // y >= low >= 0: rounds down
  return begins && static_cast<double>(whole) == y ? whole : whole + 1;
}

void load_column(const float* field, const Range& rows, std::int64_t width, std::int64_t column, double threshold,
                 std::vector<double>& out) {
  out.resize(static_cast<std::size_t>(rows.count));
  for (std::int64_t i = 0; i < rows.count; ++i) {
    out[static_cast<std::size_t>(i)] = static_cast<double>(field[i * width + column]) - threshold;
  }
}

}  // namespace

void crossings(const float* field, const Axis& y_axis, const Range& rows, const Axis& x_axis, const Range& columns,
               double threshold, CrossingScratch& scratch, std::vector<std::uint32_t>& toggles) {
  const std::int64_t count = rows.count;
  const auto size = static_cast<std::size_t>(count);
  const double row_step = y_axis.stride / y_axis.scale;  // pixels from one row of cells to the next
  scratch.row_begin.resize(size);
  scratch.row_pixel.resize(size);
  for (std::int64_t i = 0; i < count; ++i) {
    const double row = static_cast<double>(rows.first + i);
    scratch.row_begin[static_cast<std::size_t>(i)] = (y_axis.stride * (row + 0.5) - y_axis.shift) / y_axis.scale - 0.5;
    const std::int64_t from = i == 0 ? rows.begin : scratch.row_pixel[static_cast<std::size_t>(i) - 1];
    scratch.row_pixel[static_cast<std::size_t>(i)] =
        first_pixel(from, rows.end, [&](std::int64_t pixel) { return y_axis.cell(pixel) >= row; });
  }
  scratch.kind.resize(size);
  const double* row_begin = scratch.row_begin.data();
  const std::int64_t* row_pixel = scratch.row_pixel.data();
  Emitter emit(toggles, y_axis.pixels);

  std::int64_t loaded = -1;  // the cell column in scratch.left
  for (std::int64_t x = columns.begin; x < columns.end;) {
    const double first_place = x_axis.cell(x);
    const auto column = static_cast<std::int64_t>(first_place);
    // The pixel columns up to `x_end` lie between the cell columns `column` and `column` + 1.
    const std::int64_t x_end = first_pixel(
        x + 1, columns.end, [&](std::int64_t pixel) { return x_axis.cell(pixel) >= static_cast<double>(column + 1); });
    const std::int64_t local = column - columns.first;
    if (loaded == local - 1 && loaded >= 0) {
      scratch.left.swap(scratch.right);
    } else {
      load_column(field, rows, columns.count, local, threshold, scratch.left);
    }
    load_column(field, rows, columns.count, local + 1 < columns.count ? local + 1 : local, threshold, scratch.right);
    loaded = local;

    const double *left = scratch.left.data(), *right = scratch.right.data();
    std::uint8_t* kind = scratch.kind.data();
    scratch.gaps.clear();
    for (std::int64_t i = 0; i < count; ++i) {
      kind[i] = kind_of(left[i], right[i]);
      if (i > 0 && (kind[i] != kind[i - 1] || kind[i] >= kMixed)) scratch.gaps.push_back(i - 1);
    }

    for (; x < x_end; ++x) {
      const double fraction = x_axis.cell(x) - static_cast<double>(column);
      const auto value_at = [&](std::int64_t i) { return left[i] * (1 - fraction) + right[i] * fraction; };
      const auto inside_at = [&](std::int64_t i, double value) {
        return kind[i] == kMixed ? value >= 0 : kind[i] == kInside;
      };
      emit.begin_column(x);
      // The side is carried along, not asked for twice: begins and ends take turns whatever rounding does.
      bool inside = inside_at(0, value_at(0));
      if (inside) emit.toggle(rows.begin);
      for (const std::int64_t i : scratch.gaps) {
        const double upper = value_at(i), lower = value_at(i + 1);
        const bool to = inside_at(i + 1, lower);
        if (kind[i] == kBroken || kind[i + 1] == kBroken) {
          if (inside) emit.toggle(row_pixel[i]);
          if (to) emit.toggle(row_pixel[i + 1]);
        } else if (inside != to) {
          const double y = row_begin[i] + row_step * (upper / (upper - lower));
          emit.toggle(change_at(y, to, row_pixel[i], row_pixel[i + 1]));
        }
        inside = to;
      }
      if (inside) emit.toggle(rows.end);
    }
  }
}

}  // namespace centermask::masks
