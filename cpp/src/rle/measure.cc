// Area, bounding box and intersection over union, straight from the runs.
#include <algorithm>
#include <vector>

#include "centermask/rle.h"
#include "rle/runs.h"

namespace centermask {

namespace rle {

Bounds bounds_of(Runs runs, std::int64_t height) {
  Bounds bounds;
  bool empty = true;
  std::int64_t position = 0;
  for (std::int64_t i = 0; i < runs.count; ++i) {
    const std::int64_t begin = position;
    position += runs.data[i];
    if (i % 2 == 0 || runs.data[i] == 0) continue;
    const std::int64_t first = begin / height, last = (position - 1) / height;
    std::int64_t y0 = begin - first * height, y1 = position - last * height;
    if (first != last) {  // goes over a column's bottom to the top of the next
      y0 = 0;
      y1 = height;
    }
    if (empty) {
      bounds = {first, y0, last + 1, y1};
      empty = false;
    } else {
      bounds.x1 = last + 1;
      bounds.y0 = std::min(bounds.y0, y0);
      bounds.y1 = std::max(bounds.y1, y1);
    }
  }
  return bounds;
}

namespace {

std::int64_t area_of(Runs runs) {
  std::int64_t area = 0;
  for (std::int64_t i = 1; i < runs.count; i += 2) area += runs.data[i];
  return area;
}

std::int64_t intersection(Runs a, Runs b) {
  std::int64_t common = 0;
  std::int64_t i = 0, j = 0;            // runs begun
  std::int64_t left_a = 0, left_b = 0;  // what is left of them
  while (true) {
    while (left_a == 0 && i < a.count) left_a = a.data[i++];
    while (left_b == 0 && j < b.count) left_b = b.data[j++];
    if (left_a == 0 || left_b == 0) return common;
    const std::int64_t step = std::min(left_a, left_b);
    if (i % 2 == 0 && j % 2 == 0) common += step;  // both in an odd run, which is inside
    left_a -= step;
    left_b -= step;
  }
}

struct Mask {
  Runs runs;
  Bounds bounds;
  std::int64_t area;
};

std::vector<Mask> masks_of(const RleBatch& batch, std::int64_t height, std::int64_t width, const char* argument) {
  constexpr const char* op = "rle_iou";
  const Runs all = checked_runs(batch.runs, op, argument);
  check_offsets(batch.offsets, all.count, op, argument);
  const auto* offsets = batch.offsets.ptr<const std::int64_t>();
  std::vector<Mask> masks;
  masks.reserve(static_cast<std::size_t>(batch.offsets.shape[0] - 1));
  for (std::int64_t i = 0; i + 1 < batch.offsets.shape[0]; ++i) {
    const Runs runs{all.data + offsets[i], offsets[i + 1] - offsets[i]};
    check_total(runs, height, width, op, argument);
    masks.push_back({runs, bounds_of(runs, height), area_of(runs)});
  }
  return masks;
}

double overlap(const Mask& detection, const Mask& truth, bool crowd) {
  const Bounds &a = detection.bounds, &b = truth.bounds;
  if (std::min(a.x1, b.x1) <= std::max(a.x0, b.x0) || std::min(a.y1, b.y1) <= std::max(a.y0, b.y0)) return 0.0;
  const std::int64_t common = intersection(detection.runs, truth.runs);
  if (common == 0) return 0.0;
  const std::int64_t whole = crowd ? detection.area : detection.area + truth.area - common;
  return static_cast<double>(common) / static_cast<double>(whole);
}

}  // namespace
}  // namespace rle

std::int64_t rle_area(const TensorView& runs) { return rle::area_of(rle::checked_runs(runs, "rle_area", "runs")); }

void rle_bbox(const TensorView& runs, std::int64_t height, std::int64_t width, const TensorView& box) {
  constexpr const char* op = "rle_bbox";
  const rle::Runs in = rle::checked_runs(runs, op, "runs");
  rle::check_total(in, height, width, op, "runs");
  rle::check_vector(box, DType::kFloat64, op, "box");
  if (box.shape[0] != 4) fail(ErrorKind::kValue, op, ": box must be [4], got ", shape_text(box));
  const rle::Bounds bounds = rle::bounds_of(in, height);
  auto* out = box.ptr<double>();
  out[0] = static_cast<double>(bounds.x0);
  out[1] = static_cast<double>(bounds.y0);
  out[2] = static_cast<double>(bounds.x1 - bounds.x0);
  out[3] = static_cast<double>(bounds.y1 - bounds.y0);
}

void rle_iou(const RleBatch& detections, const RleBatch& ground_truth, const TensorView& is_crowd, std::int64_t height,
             std::int64_t width, const TensorView& iou, const ParallelFor& parallel) {
  constexpr const char* op = "rle_iou";
  const std::vector<rle::Mask> rows = rle::masks_of(detections, height, width, "detections");
  const std::vector<rle::Mask> columns = rle::masks_of(ground_truth, height, width, "ground_truth");
  const auto row_count = static_cast<std::int64_t>(rows.size()),
             column_count = static_cast<std::int64_t>(columns.size());
  rle::check_vector(is_crowd, DType::kUInt8, op, "is_crowd");
  if (is_crowd.shape[0] != column_count) {
    fail(ErrorKind::kValue, op, ": is_crowd must be [G=", column_count, "], got ", shape_text(is_crowd));
  }
  if (iou.dtype != DType::kFloat64 || iou.rank != 2 || !iou.contiguous() || iou.shape[0] != row_count ||
      iou.shape[1] != column_count) {
    fail(ErrorKind::kValue, op, ": iou must be contiguous float64 [D=", row_count, ", G=", column_count, "], got ",
         dtype_name(iou.dtype), " ", shape_text(iou));
  }
  const auto* crowd = is_crowd.ptr<const std::uint8_t>();
  auto* out = iou.ptr<double>();
  parallel(row_count, [&](std::int64_t d) {
    for (std::int64_t g = 0; g < column_count; ++g) {
      out[d * column_count + g] =
          rle::overlap(rows[static_cast<std::size_t>(d)], columns[static_cast<std::size_t>(g)], crowd[g] != 0);
    }
  });
}

}  // namespace centermask
