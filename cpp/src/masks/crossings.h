// Where a bilinearly interpolated field crosses the threshold.
#pragma once

#include <cstdint>
#include <vector>

#include "masks/geometry.h"

namespace centermask::masks {

// Scratch of crossings(), kept from instance to instance.
struct CrossingScratch {
  std::vector<double> row_begin;        // the real y at which the row of cells has its centre, in pixels
  std::vector<std::int64_t> row_pixel;  // the first pixel that is not above it
  std::vector<double> left, right;      // two columns of the field, less the threshold
  std::vector<std::uint8_t> kind;       // of each row, see crossings.cc
  std::vector<std::int64_t> gaps;       // the gaps between rows in which something may change
};

// Column-major positions x * height + y at which the mask begins or ends, sorted, two for each run; two at the same
// place are none. `field` is [rows.count, columns.count].
void crossings(const float* field, const Axis& y_axis, const Range& rows, const Axis& x_axis, const Range& columns,
               double threshold, CrossingScratch& scratch, std::vector<std::uint32_t>& toggles);

}  // namespace centermask::masks
