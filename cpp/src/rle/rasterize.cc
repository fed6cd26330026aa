// Polygons to runs, with the very pixels that pycocotools gives: vertices on a lattice of fifths of a pixel, edges
// walked along their longer axis one lattice step at a time. A pixel column changes between inside and outside where
// the walk steps over its centre line, that is from lattice column 5c + 2 to 5c + 3. Instead of walking, each edge is
// asked for the one step over each centre line.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "centermask/rle.h"
#include "rle/runs.h"

namespace centermask {

namespace {

constexpr double kScale = 5.0;
constexpr double kMaxCoordinate = 16777216.0;

struct Vertex {
  std::int64_t x, y;
};

// Cut towards zero after adding a half: not the same as rounding for negative numbers, and the format's pixels
// depend on it.
inline std::int64_t to_lattice(double value) { return static_cast<std::int64_t>(value + 0.5); }

inline std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

class Rasterizer {
 public:
  Rasterizer(std::int64_t height, std::int64_t width) : height_(height), width_(width) {}

  void add_ring(const double* points, std::int64_t count) {
    auto vertex = [&](std::int64_t i) {
      return Vertex{to_lattice(kScale * points[2 * i]), to_lattice(kScale * points[2 * i + 1])};
    };
    if (count == 0) return;
    Vertex last = vertex(count - 1);
    for (std::int64_t i = 0; i < count; ++i) {
      const Vertex current = vertex(i);
      add_edge(last, current);
      last = current;
    }
  }

  // Sorted changes; two at the same place are none.
  rle::Toggles take() {
    std::sort(changes_.begin(), changes_.end());
    rle::Toggles toggles;
    for (std::uint32_t position : changes_) rle::toggle_at(toggles, position);
    changes_.clear();
    return toggles;
  }

 private:
  void add_edge(Vertex from, Vertex to) {
    const std::int64_t dx = std::abs(to.x - from.x), dy = std::abs(to.y - from.y);
    if (dx == 0) return;
    // Always walked along increasing coordinates of the longer axis.
    const bool flat = dx >= dy;
    const bool flipped = flat ? from.x > to.x : from.y > to.y;
    if (flipped) std::swap(from, to);
    const auto columns_of = [&](std::int64_t low, std::int64_t high) {  // centre lines with low <= 5c + 2 < high
      return std::pair<std::int64_t, std::int64_t>{std::max<std::int64_t>(0, -floor_div(2 - low, 5)),
                                                   std::min(width_ - 1, floor_div(high - 3, 5))};
    };
    if (flat) {
      const double slope = static_cast<double>(to.y - from.y) / static_cast<double>(dx);
      const auto y_at = [&](std::int64_t t) {
        return to_lattice(static_cast<double>(from.y) + slope * static_cast<double>(t));
      };
      const auto [first, last] = columns_of(from.x, to.x);
      for (std::int64_t column = first; column <= last; ++column) {
        const std::int64_t t = 5 * column + 2 - from.x;
        add_change(column, std::min(y_at(t), y_at(t + 1)));
      }
    } else {
      const double slope = static_cast<double>(to.x - from.x) / static_cast<double>(dy);
      const auto x_at = [&](std::int64_t t) {
        return to_lattice(static_cast<double>(from.x) + slope * static_cast<double>(t));
      };
      const bool rising = slope > 0;
      const auto [first, last] = columns_of(std::min(x_at(0), x_at(dy)), std::max(x_at(0), x_at(dy)));
      for (std::int64_t column = first; column <= last; ++column) {
        const std::int64_t line = 5 * column + 2;
        // The first t that is past the line; x_at is monotonic, and its two ends lie on different sides.
        std::int64_t low = 0, high = dy;
        while (high - low > 1) {
          const std::int64_t middle = low + (high - low) / 2;
          ((x_at(middle) > line) == rising ? high : low) = middle;
        }
        // A step of more than one lattice column, which only rounding can make, counts for the column it ends beside.
        const std::int64_t end = flipped ? low : high, begin = flipped ? high : low;
        const std::int64_t x_end = x_at(end);
        if ((x_end < x_at(begin) ? x_end : x_end - 1) == line) add_change(column, from.y + low);
      }
    }
  }

  void add_change(std::int64_t column, std::int64_t lattice_y) {
    double y = (static_cast<double>(lattice_y) + 0.5) / kScale - 0.5;
    y = std::ceil(std::min(std::max(y, 0.0), static_cast<double>(height_)));
    changes_.push_back(static_cast<std::uint32_t>(column * height_ + static_cast<std::int64_t>(y)));
  }

  std::int64_t height_, width_;
  rle::Toggles changes_;
};

rle::Toggles inside_any(const rle::Toggles& a, const rle::Toggles& b) {
  rle::Toggles both;
  std::size_t i = 0, j = 0;
  while (i < a.size() || j < b.size()) {
    const bool take_a = j == b.size() || (i < a.size() && a[i] <= b[j]);
    const bool take_b = i == a.size() || (j < b.size() && b[j] <= a[i]);
    const std::uint32_t position = take_a ? a[i] : b[j];
    const bool was = i % 2 == 1 || j % 2 == 1;
    i += take_a;
    j += take_b;
    if ((i % 2 == 1 || j % 2 == 1) != was) both.push_back(position);
  }
  return both;
}

}  // namespace

std::int64_t rle_from_polygons(const TensorView& points, const TensorView& ring_offsets, std::int64_t height,
                               std::int64_t width, PolygonFill fill, const TensorView& runs) {
  constexpr const char* op = "rle_from_polygons";
  const std::int64_t pixels = rle::pixel_count(op, height, width);
  if (points.dtype != DType::kFloat64 || points.rank != 2 || points.shape[1] != 2 || !points.contiguous()) {
    fail(ErrorKind::kValue, op, ": points must be contiguous float64 [P, 2], got ", dtype_name(points.dtype), " ",
         shape_text(points));
  }
  rle::check_offsets(ring_offsets, points.shape[0], op, "ring_offsets");
  rle::check_vector(runs, DType::kUInt32, op, "runs");
  const auto* xy = points.ptr<const double>();
  for (std::int64_t i = 0; i < 2 * points.shape[0]; ++i) {
    if (!(std::abs(xy[i]) <= kMaxCoordinate)) {
      fail(ErrorKind::kValue, op, ": coordinates must be finite and at most 2^24 in size, got ", xy[i]);
    }
  }
  const auto* offsets = ring_offsets.ptr<const std::int64_t>();
  rle::Toggles result;
  if (pixels > 0) {
    Rasterizer rasterizer(height, width);
    for (std::int64_t i = 0; i + 1 < ring_offsets.shape[0]; ++i) {
      rasterizer.add_ring(xy + 2 * offsets[i], offsets[i + 1] - offsets[i]);
      if (fill == PolygonFill::kUnion) result = inside_any(result, rasterizer.take());
    }
    if (fill == PolygonFill::kEvenOdd) result = rasterizer.take();
  }
  rle::RunWriter writer(runs);
  rle::write_runs(result, pixels, writer);
  return writer.count();
}

}  // namespace centermask
