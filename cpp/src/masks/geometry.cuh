// The rules of geometry.h on the device, in the same double arithmetic, so that windows are the CPU's to the last
// pixel: products that are added to something are rounded by themselves (nvcc would fuse them). Divisions are products
// with inverses that the host has, or the block; doubles divide slowly on most GPUs.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "masks/geometry.h"

namespace centermask::masks::device {

struct DeviceAxis : Axis {
  double inverse_scale, inverse_stride;
  double step;  // pixels from one cell to the next
};

inline DeviceAxis device_axis(const Axis& axis) {
  DeviceAxis result;
  static_cast<Axis&>(result) = axis;
  result.inverse_scale = 1 / axis.scale;
  result.inverse_stride = 1 / axis.stride;
  result.step = axis.stride / axis.scale;
  return result;
}

// a / b, correctly rounded: `inverse` is, and two steps of Newton's make the rest of it.
__device__ inline double exact_quotient(double a, double b, double inverse) {
  double quotient = __dmul_rn(a, inverse);
  if (!(fabs(quotient) < 1e300)) return quotient;
  for (int i = 0; i < 2; ++i) quotient = fma(fma(-quotient, b, a), inverse, quotient);
  return quotient;
}

__device__ inline double input_at(const Axis& axis, std::int64_t pixel) {
  return __dadd_rn(__dmul_rn(axis.scale, static_cast<double>(pixel) + 0.5), axis.shift);
}

__device__ inline double cell_at(const DeviceAxis& axis, std::int64_t pixel) {
  const double place = exact_quotient(input_at(axis, pixel), axis.stride, axis.inverse_stride) - 0.5;
  const double last = static_cast<double>(axis.cells - 1);
  return place < 0 ? 0.0 : place > last ? last : place;
}

// first_pixel() of geometry.h for a predicate that turns true at about `guess`: two calls where that is right.
template <class Predicate>
__device__ inline std::int64_t first_pixel_near(double guess, std::int64_t begin, std::int64_t end,
                                                Predicate predicate) {
  const auto at =
      static_cast<std::int64_t>(fmin(fmax(ceil(guess), static_cast<double>(begin)), static_cast<double>(end)));
  const bool before = at > begin && predicate(at - 1), here = at == end || predicate(at);
  if (here && !before) return at;
  if (before) {
    end = at - 1;
  } else {
    begin = at + 1;
  }
#pragma unroll 1
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (predicate(middle)) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// The first pixel of [begin, end) whose centre has an input coordinate of at least `from`, or end.
__device__ inline std::int64_t first_at_input(const DeviceAxis& axis, double from, std::int64_t begin,
                                              std::int64_t end) {
  return first_pixel_near((from - axis.shift) * axis.inverse_scale - 0.5, begin, end,
                          [&](std::int64_t pixel) { return input_at(axis, pixel) >= from; });
}

// Where a cell has its centre, in pixels.
__device__ inline double pixel_of_cell(const DeviceAxis& axis, std::int64_t cell) {
  const double centre = __dmul_rn(axis.stride, static_cast<double>(cell) + 0.5);
  return fma(__dadd_rn(centre, -axis.shift), axis.inverse_scale, -0.5);
}

// The first pixel of [begin, end) that does not lie above (or left of) a cell's centre, or end.
__device__ inline std::int64_t first_at_cell(const DeviceAxis& axis, std::int64_t cell, double pixel_of_centre,
                                             std::int64_t begin, std::int64_t end) {
  const auto place = static_cast<double>(cell);
  if (cell <= 0) return begin;
  return first_pixel_near(pixel_of_centre, begin, end,
                          [&](std::int64_t pixel) { return cell_at(axis, pixel) >= place; });
}

__device__ inline bool is_finite(double value) { return fabs(value) <= 1.7976931348623157e308; }

__device__ inline bool has_area_on_device(const Box& box) {
  return is_finite(box.x0) && is_finite(box.y0) && is_finite(box.x1) && is_finite(box.y1) && box.x0 < box.x1 &&
         box.y0 < box.y1;
}

// The first pixel inside the grown box on one axis, or the first one behind it.
__device__ inline std::int64_t box_edge(const DeviceAxis& axis, double low, double high, double margin, bool upper) {
  const double grow = __dmul_rn(margin, __dadd_rn(high, -low));
  return first_at_input(axis, upper ? __dadd_rn(high, grow) : __dadd_rn(low, -grow), 0, axis.pixels);
}

// The cells that interpolation reads for the pixels [begin, end), which are not none.
struct CellRange {
  std::int64_t first;
  std::int64_t count;
};

__device__ inline CellRange cells_of(const DeviceAxis& axis, std::int64_t begin, std::int64_t end) {
  const auto first = static_cast<std::int64_t>(cell_at(axis, begin));
  const auto last = static_cast<std::int64_t>(cell_at(axis, end - 1)) + 1;
  return {first, (last < axis.cells ? last : axis.cells - 1) - first + 1};
}

// `inverse` is that of the size that relative coordinates are measured in.
__device__ inline CellPosition relative_position(const Axis& axis, std::int64_t cell, double low, double high,
                                                 double inverse) {
  const double centre = fma(__dadd_rn(high, -low), 0.5, low);
  const double place = __dmul_rn(axis.stride, static_cast<double>(cell) + 0.5);
  return {static_cast<float>(2 * __dadd_rn(place, -centre) * inverse), 0};
}

// `inverse` is that of high - low.
__device__ inline CellPosition shape_position(const Axis& axis, std::int64_t cell, double low, double inverse) {
  const double centre = __dmul_rn(axis.stride, static_cast<double>(cell) + 0.5);
  double place = fma(__dmul_rn(__dadd_rn(centre, -low), inverse), kShapeSize, -0.5);
  place = fmin(fmax(place, 0.0), kShapeSize - 1.0);
  const auto index = static_cast<std::int32_t>(place);
  return {static_cast<float>(place - index), index};
}

}  // namespace centermask::masks::device
