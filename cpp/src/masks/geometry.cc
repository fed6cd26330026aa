#include "masks/geometry.h"

#include <algorithm>
#include <cmath>

namespace centermask::masks {

Axis x_axis(const AssembleMasksParams& params, std::int64_t cells) {
  return {params.image_to_input[0], params.image_to_input[2], static_cast<double>(params.stride), params.image_width,
          cells};
}

Axis y_axis(const AssembleMasksParams& params, std::int64_t cells) {
  return {params.image_to_input[4], params.image_to_input[5], static_cast<double>(params.stride), params.image_height,
          cells};
}

bool has_area(const Box& box) {
  return std::isfinite(box.x0) && std::isfinite(box.y0) && std::isfinite(box.x1) && std::isfinite(box.y1) &&
         box.x0 < box.x1 && box.y0 < box.y1;
}

Range range_of(const Axis& axis, double low, double high, double margin) {
  const double grow = margin * (high - low);
  const double from = low - grow, to = high + grow;
  Range range;
  range.begin = first_pixel(0, axis.pixels, [&](std::int64_t pixel) { return axis.input(pixel) >= from; });
  range.end = first_pixel(range.begin, axis.pixels, [&](std::int64_t pixel) { return axis.input(pixel) >= to; });
  if (range.begin < range.end && axis.cells > 0) {
    range.first = static_cast<std::int64_t>(axis.cell(range.begin));
    const auto last = static_cast<std::int64_t>(axis.cell(range.end - 1)) + 1;
    range.count = std::min(last, axis.cells - 1) - range.first + 1;
  }
  return range;
}

void relative_positions(const Axis& axis, const Range& range, double low, double high, double size,
                        std::vector<CellPosition>& positions) {
  positions.resize(static_cast<std::size_t>(range.count));
  const double centre = low + (high - low) / 2;
  for (std::int64_t i = 0; i < range.count; ++i) {
    const double cell = axis.stride * (static_cast<double>(range.first + i) + 0.5);
    positions[static_cast<std::size_t>(i)] = {static_cast<float>(2 * (cell - centre) / size), 0};
  }
}

void shape_positions(const Axis& axis, const Range& range, double low, double high,
                     std::vector<CellPosition>& positions) {
  positions.resize(static_cast<std::size_t>(range.count));
  for (std::int64_t i = 0; i < range.count; ++i) {
    const double cell = axis.stride * (static_cast<double>(range.first + i) + 0.5);
    double place = (cell - low) / (high - low) * kShapeSize - 0.5;
    place = std::min(std::max(place, 0.0), kShapeSize - 1.0);
    const auto index = static_cast<std::int32_t>(place);
    positions[static_cast<std::size_t>(i)] = {static_cast<float>(place - index), index};
  }
}

}  // namespace centermask::masks
