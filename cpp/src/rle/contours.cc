// Runs to outlines along pixel edges.
//
// Every change in a pixel column is an edge of length one, from (x, y) to (x + 1, y). It is walked so that the mask
// lies to the right: a top edge (the mask begins below) from left to right, a bottom edge from right to left. Each
// edge ends on a vertical grid line, where the vertical edges between the two columns beside it lead to the edge that
// follows. Joining the edges of all grid lines gives closed rings.
#include <algorithm>
#include <utility>
#include <vector>

#include "centermask/rle.h"
#include "rle/runs.h"

namespace centermask {

namespace {

struct Edge {
  std::int64_t x, y;
  std::int64_t next = -1;
};

// The edges of one pixel column: edges[begin .. end), top and bottom edges in turn.
struct Column {
  std::int64_t x = -1;
  std::size_t begin = 0, end = 0;
};

std::vector<Edge> edges_of(rle::Runs runs, std::int64_t height) {
  std::vector<Edge> edges;
  std::int64_t position = 0;
  for (std::int64_t i = 0; i < runs.count; ++i) {
    const std::int64_t end = position + runs.data[i];
    if (i % 2 == 1) {
      for (std::int64_t x = height > 0 ? position / height : 0; position < end; ++x) {
        const std::int64_t column_end = std::min(end, (x + 1) * height);
        const std::int64_t top = position - x * height;
        if (!edges.empty() && edges.back().x == x && edges.back().y == top) {
          edges.pop_back();  // runs parted by an empty run
        } else {
          edges.push_back({x, top});
        }
        edges.push_back({x, column_end - x * height});
        position = column_end;
      }
    }
    position = end;
  }
  return edges;
}

// Links the edges that meet on the grid line between `left` and `right`, neighbouring columns either of which may be
// without edges. Going down the line, `in_left` and `in_right` say whether the mask is on either side.
void link(std::vector<Edge>& edges, const Column& left, const Column& right) {
  std::size_t a = left.begin, b = right.begin;
  bool in_left = false, in_right = false;
  std::size_t going_down = 0;  // the edge that came in at the top of the vertical edge above, where that is walked down
  std::size_t going_up = 0;    // the edge that goes on from there, where it is walked up
  const auto set = [&](std::size_t from, std::size_t to) { edges[from].next = static_cast<std::int64_t>(to); };
  while (a < left.end || b < right.end) {
    const bool take_a = a < left.end && (b >= right.end || edges[a].y <= edges[b].y);
    const bool take_b = b < right.end && (a >= left.end || edges[b].y <= edges[a].y);
    const bool down_above = in_left && !in_right, up_above = !in_left && in_right;
    if (take_a && take_b) {
      if (in_left == in_right) {  // straight through
        in_left ? set(b, a) : set(a, b);
      } else if (down_above) {  // two pixels touch at a corner: always turn right, which keeps them apart
        set(going_down, a);
        going_up = b;
      } else {
        set(b, going_up);
        going_down = a;
      }
    } else {
      // One edge ends or begins here, and the vertical edge above or below joins it.
      const std::size_t edge = take_a ? a : b;
      if (down_above) {
        set(going_down, edge);
      } else if (up_above) {
        set(edge, going_up);
      } else if (take_a != in_left) {  // the mask is now on the left alone: the vertical edge below is walked down
        going_down = edge;
      } else {
        going_up = edge;
      }
    }
    if (take_a) ++a, in_left = !in_left;
    if (take_b) ++b, in_right = !in_right;
  }
}

}  // namespace

RingSizes rle_to_polygons(const TensorView& runs, std::int64_t height, std::int64_t width, const TensorView& points,
                          const TensorView& ring_offsets) {
  constexpr const char* op = "rle_to_polygons";
  const rle::Runs in = rle::checked_runs(runs, op, "runs");
  rle::check_total(in, height, width, op, "runs");
  if (points.dtype != DType::kFloat64 || points.rank != 2 || points.shape[1] != 2 || !points.contiguous()) {
    fail(ErrorKind::kValue, op, ": points must be contiguous float64 [P, 2], got ", dtype_name(points.dtype), " ",
         shape_text(points));
  }
  rle::check_vector(ring_offsets, DType::kInt64, op, "ring_offsets");

  std::vector<Edge> edges = edges_of(in, height);
  Column before;
  for (std::size_t begin = 0; begin < edges.size();) {
    Column column{edges[begin].x, begin, begin};
    while (column.end < edges.size() && edges[column.end].x == column.x) ++column.end;
    if (before.x != column.x - 1) {
      link(edges, before, {});
      before = {};
    }
    link(edges, before, column);
    before = column;
    begin = column.end;
  }
  link(edges, before, {});

  RingSizes sizes;
  auto* out = points.ptr<double>();
  auto* offsets = ring_offsets.ptr<std::int64_t>();
  const auto add_point = [&](std::int64_t x, std::int64_t y) {
    if (sizes.points < points.shape[0]) {
      out[2 * sizes.points] = static_cast<double>(x);
      out[2 * sizes.points + 1] = static_cast<double>(y);
    }
    ++sizes.points;
  };
  const auto add_offset = [&] {
    if (sizes.rings < ring_offsets.shape[0]) offsets[sizes.rings] = sizes.points;
  };
  add_offset();
  constexpr std::int64_t kDone = -1;
  for (std::size_t start = 0; start < edges.size(); ++start) {
    if (edges[start].next == kDone) continue;
    std::size_t at = start;
    while (edges[at].next != kDone) {
      Edge& edge = edges[at];
      const auto next = static_cast<std::size_t>(std::exchange(edge.next, kDone));
      const Edge& following = edges[next];
      if (following.y != edge.y) {
        // Around two corners, along the grid line at which this edge ends. Even edges are top edges, walked rightwards.
        const std::int64_t line = at % 2 == 0 ? edge.x + 1 : edge.x;
        add_point(line, edge.y);
        add_point(line, following.y);
      }
      at = next;
    }
    ++sizes.rings;
    add_offset();
  }
  return sizes;
}

}  // namespace centermask
