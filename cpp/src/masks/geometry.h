// From a box to the pixels and cells it concerns, one axis at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "centermask/masks.h"
#include "masks/kernels.h"

namespace centermask::masks {

struct Box {
  double x0, y0, x1, y1;
};

// One axis of the image, and of the cells.
struct Axis {
  double scale, shift;  // input = scale * pixel + shift
  double stride;
  std::int64_t pixels;  // of the image
  std::int64_t cells;   // of the map

  // The centre of a pixel, in input pixels and in cells (whole at their centres); these never fall as `pixel` grows.
  double input(std::int64_t pixel) const { return scale * (static_cast<double>(pixel) + 0.5) + shift; }
  double cell(std::int64_t pixel) const {
    const double place = input(pixel) / stride - 0.5;
    const double last = static_cast<double>(cells - 1);
    return place < 0 ? 0.0 : place > last ? last : place;
  }
};

// Pixels [begin, end) of one axis and the cells [first, first + count) that interpolation reads for them.
struct Range {
  std::int64_t begin = 0, end = 0;
  std::int64_t first = 0, count = 0;
};

Axis x_axis(const AssembleMasksParams& params, std::int64_t cells);
Axis y_axis(const AssembleMasksParams& params, std::int64_t cells);

// False where a coordinate is not finite or there is no area.
bool has_area(const Box& box);

// The pixels whose centres lie in [low, high) grown by the margin, and their cells where the axis has any.
Range range_of(const Axis& axis, double low, double high, double margin);

// The smallest pixel of [begin, end) with predicate true, or end; the predicate must not become false again.
template <class Predicate>
std::int64_t first_pixel(std::int64_t begin, std::int64_t end, Predicate predicate) {
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

// Positions of the cells of a range, for the field kernels. [low, high) is the box on this axis, not grown.
void relative_positions(const Axis& axis, const Range& range, double low, double high, double size,
                        std::vector<CellPosition>& positions);
void shape_positions(const Axis& axis, const Range& range, double low, double high,
                     std::vector<CellPosition>& positions);

}  // namespace centermask::masks
