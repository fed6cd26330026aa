// Masks travel as two arrays: uint32 runs [R] and int64 offsets [N+1].
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "array.h"
#include "centermask/rle.h"
#include "register.h"

namespace centermask::python {

namespace {

TensorView view_of_vector(std::vector<std::uint32_t>& values) {
  return make_view(values.data(), DType::kUInt32, {static_cast<std::int64_t>(values.size())});
}

template <class T>
py::array array_of(const T* values, std::int64_t count, DType dtype) {
  py::array array = new_array(dtype, {count});
  std::copy(values, values + count, static_cast<T*>(array.mutable_data()));
  return array;
}

// Calls write(view) -> needed, again with more room where the first guess was too small.
template <class Write>
py::array new_runs(std::int64_t guess, Write write) {
  std::vector<std::uint32_t> runs(static_cast<std::size_t>(guess));
  std::int64_t needed = 0;
  {
    py::gil_scoped_release release;
    needed = write(view_of_vector(runs));
    if (needed > guess) {
      runs.resize(static_cast<std::size_t>(needed));
      needed = write(view_of_vector(runs));
    }
  }
  return array_of(runs.data(), needed, DType::kUInt32);
}

// Mask i of a batch, after a check that the offsets fit.
class Batch {
 public:
  Batch(const py::array& runs, const py::array& offsets, const char* op)
      : runs_(view_of(runs, op, "runs")), offsets_(view_of(offsets, op, "offsets")) {
    const bool vectors = runs_.rank == 1 && runs_.dtype == DType::kUInt32 && runs_.contiguous() && offsets_.rank == 1 &&
                         offsets_.dtype == DType::kInt64 && offsets_.contiguous() && offsets_.shape[0] >= 1;
    if (!vectors) fail(ErrorKind::kType, op, ": runs must be uint32 [R] and offsets int64 [N+1], both contiguous");
    for (std::int64_t i = 0; i < size(); ++i) {
      if (begin(i) < 0 || begin(i + 1) < begin(i) || begin(i + 1) > runs_.shape[0]) {
        fail(ErrorKind::kValue, op, ": offsets must rise from 0 to at most the number of runs");
      }
    }
  }

  std::int64_t size() const { return offsets_.shape[0] - 1; }

  TensorView operator[](std::int64_t i) const {
    return make_view(runs_.ptr<std::uint32_t>() + begin(i), DType::kUInt32, {begin(i + 1) - begin(i)});
  }

  RleBatch whole() const { return {runs_, offsets_}; }

 private:
  std::int64_t begin(std::int64_t i) const { return offsets_.ptr<const std::int64_t>()[i]; }

  TensorView runs_, offsets_;
};

const std::int64_t* checked_sizes(const py::array& sizes, std::int64_t count, const char* op) {
  const TensorView view = view_of(sizes, op, "sizes");
  if (view.dtype != DType::kInt64 || view.rank != 2 || view.shape[0] != count || view.shape[1] != 2 ||
      !view.contiguous()) {
    fail(ErrorKind::kValue, op, ": sizes must be contiguous int64 [N=", count, ", 2], got ", dtype_name(view.dtype),
         " ", shape_text(view));
  }
  return view.ptr<const std::int64_t>();
}

TensorView item(TensorView batch, std::int64_t i) {  // [N, H, W] -> [H, W]
  batch.data = batch.ptr<std::uint8_t>() + i * batch.stride[0];
  batch.rank = 2;
  for (int axis = 0; axis < 2; ++axis) {
    batch.shape[axis] = batch.shape[axis + 1];
    batch.stride[axis] = batch.stride[axis + 1];
  }
  return batch;
}

py::tuple encode(const py::array& bitmaps) {
  const TensorView view = view_of(bitmaps, "rle_encode", "bitmaps");
  if (view.dtype != DType::kUInt8) {
    fail(ErrorKind::kType, "rle_encode: bitmaps must be bool or uint8, got ", dtype_name(view.dtype));
  }
  if (view.rank != 3) fail(ErrorKind::kValue, "rle_encode: bitmaps must be [N, H, W], got ", shape_text(view));
  std::vector<std::uint32_t> runs;
  std::vector<std::int64_t> offsets{0};
  {
    py::gil_scoped_release release;
    std::vector<std::uint32_t> mask(static_cast<std::size_t>(4 * view.shape[2] + 64));
    for (std::int64_t i = 0; i < view.shape[0]; ++i) {
      const TensorView bitmap = item(view, i);
      std::int64_t needed = rle_encode(bitmap, view_of_vector(mask));
      if (needed > static_cast<std::int64_t>(mask.size())) {
        mask.resize(static_cast<std::size_t>(needed));
        needed = rle_encode(bitmap, view_of_vector(mask));
      }
      runs.insert(runs.end(), mask.begin(), mask.begin() + needed);
      offsets.push_back(static_cast<std::int64_t>(runs.size()));
    }
  }
  return py::make_tuple(array_of(runs.data(), static_cast<std::int64_t>(runs.size()), DType::kUInt32),
                        array_of(offsets.data(), static_cast<std::int64_t>(offsets.size()), DType::kInt64));
}

py::array decode(const py::array& runs, const py::array& offsets, std::int64_t height, std::int64_t width) {
  const Batch batch(runs, offsets, "rle_decode");
  for (std::int64_t i = 0; i < batch.size(); ++i) rle_check(batch[i], height, width);  // before memory is taken
  py::array bitmaps = new_array(DType::kUInt8, {batch.size(), height, width});
  const TensorView view = view_of(bitmaps, "rle_decode", "bitmaps");
  py::gil_scoped_release release;
  for (std::int64_t i = 0; i < batch.size(); ++i) rle_decode(batch[i], item(view, i));
  return bitmaps;
}

py::array area(const py::array& runs, const py::array& offsets) {
  const Batch batch(runs, offsets, "rle_area");
  py::array areas = new_array(DType::kInt64, {batch.size()});
  auto* out = static_cast<std::int64_t*>(areas.mutable_data());
  for (std::int64_t i = 0; i < batch.size(); ++i) out[i] = rle_area(batch[i]);
  return areas;
}

py::array bbox(const py::array& runs, const py::array& offsets, const py::array& sizes) {
  const Batch batch(runs, offsets, "rle_bbox");
  const std::int64_t* size = checked_sizes(sizes, batch.size(), "rle_bbox");
  py::array boxes = new_array(DType::kFloat64, {batch.size(), 4});
  auto* out = static_cast<double*>(boxes.mutable_data());
  for (std::int64_t i = 0; i < batch.size(); ++i) {
    rle_bbox(batch[i], size[2 * i], size[2 * i + 1], make_view(out + 4 * i, DType::kFloat64, {4}));
  }
  return boxes;
}

py::array iou(const py::array& detection_runs, const py::array& detection_offsets, const py::array& truth_runs,
              const py::array& truth_offsets, const py::array& is_crowd, std::int64_t height, std::int64_t width,
              int threads) {
  const Batch detections(detection_runs, detection_offsets, "rle_iou"), truth(truth_runs, truth_offsets, "rle_iou");
  const TensorView crowd = view_of(is_crowd, "rle_iou", "is_crowd");
  py::array result = new_array(DType::kFloat64, {detections.size(), truth.size()});
  const TensorView view = view_of(result, "rle_iou", "iou");
  const ParallelFor parallel = threads_of(threads);
  py::gil_scoped_release release;
  rle_iou(detections.whole(), truth.whole(), crowd, height, width, view, parallel);
  return result;
}

py::array merge(const py::array& runs, const py::array& offsets, bool intersect) {
  const Batch batch(runs, offsets, "rle_merge");
  const RleBatch masks = batch.whole();
  return new_runs(masks.runs.shape[0] + 1, [&](const TensorView& out) { return rle_merge(masks, intersect, out); });
}

py::array from_polygons(const py::array& points, const py::array& ring_offsets, std::int64_t height, std::int64_t width,
                        bool even_odd) {
  const TensorView xy = view_of(points, "rle_from_polygons", "points");
  const TensorView offsets = view_of(ring_offsets, "rle_from_polygons", "ring_offsets");
  const PolygonFill fill = even_odd ? PolygonFill::kEvenOdd : PolygonFill::kUnion;
  const std::int64_t guess = 2 * std::clamp<std::int64_t>(width, 0, 1 << 14) + 64;  // mostly two runs in a column
  return new_runs(guess,
                  [&](const TensorView& out) { return rle_from_polygons(xy, offsets, height, width, fill, out); });
}

py::tuple to_polygons(const py::array& runs, std::int64_t height, std::int64_t width) {
  const TensorView in = view_of(runs, "rle_to_polygons", "runs");
  std::vector<double> points(2 * 512);
  std::vector<std::int64_t> offsets(64);
  RingSizes sizes;
  {
    py::gil_scoped_release release;
    const auto trace = [&] {
      const auto point_count = static_cast<std::int64_t>(points.size() / 2);
      const auto offset_count = static_cast<std::int64_t>(offsets.size());
      sizes = rle_to_polygons(in, height, width, make_view(points.data(), DType::kFloat64, {point_count, 2}),
                              make_view(offsets.data(), DType::kInt64, {offset_count}));
      return sizes.points <= point_count && sizes.rings < offset_count;
    };
    if (!trace()) {
      points.resize(2 * static_cast<std::size_t>(sizes.points));
      offsets.resize(static_cast<std::size_t>(sizes.rings) + 1);
      trace();
    }
  }
  py::array xy = new_array(DType::kFloat64, {sizes.points, 2});
  std::copy(points.begin(), points.begin() + 2 * sizes.points, static_cast<double*>(xy.mutable_data()));
  return py::make_tuple(xy, array_of(offsets.data(), sizes.rings + 1, DType::kInt64));
}

py::list to_strings(const py::array& runs, const py::array& offsets) {
  const Batch batch(runs, offsets, "rle_to_string");
  std::vector<std::uint8_t> text;
  py::list strings;
  for (std::int64_t i = 0; i < batch.size(); ++i) {
    const TensorView mask = batch[i];
    text.resize(static_cast<std::size_t>(7 * mask.shape[0]));  // a 33-bit difference takes seven groups of five
    const auto capacity = static_cast<std::int64_t>(text.size());
    const std::int64_t length = rle_to_string(mask, make_view(text.data(), DType::kUInt8, {capacity}));
    strings.append(py::bytes(reinterpret_cast<const char*>(text.data()), static_cast<std::size_t>(length)));
  }
  return strings;
}

py::tuple from_strings(const std::vector<py::bytes>& strings, const py::array& sizes) {
  const auto count = static_cast<std::int64_t>(strings.size());
  const std::int64_t* size = checked_sizes(sizes, count, "rle");
  std::vector<std::uint32_t> runs;
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t i = 0; i < count; ++i) {
    char* characters = nullptr;
    py::ssize_t length = 0;
    if (PyBytes_AsStringAndSize(strings[static_cast<std::size_t>(i)].ptr(), &characters, &length) != 0) {
      throw py::error_already_set();
    }
    const std::size_t begin = runs.size();
    runs.resize(begin + static_cast<std::size_t>(length));  // each run takes at least one character
    const TensorView out = make_view(runs.data() + begin, DType::kUInt32, {std::int64_t{length}});
    const TensorView text = make_view(characters, DType::kUInt8, {std::int64_t{length}});
    runs.resize(begin + static_cast<std::size_t>(rle_from_string(text, size[2 * i], size[2 * i + 1], out)));
    offsets.push_back(static_cast<std::int64_t>(runs.size()));
  }
  return py::make_tuple(array_of(runs.data(), static_cast<std::int64_t>(runs.size()), DType::kUInt32),
                        array_of(offsets.data(), static_cast<std::int64_t>(offsets.size()), DType::kInt64));
}

void check(const py::array& runs, std::int64_t height, std::int64_t width) {
  rle_check(view_of(runs, "rle", "counts"), height, width);
}

}  // namespace

void register_rle(py::module_& module) {
  using namespace py::literals;
  module.def("rle_area", &area, "runs"_a, "offsets"_a);
  module.def("rle_bbox", &bbox, "runs"_a, "offsets"_a, "sizes"_a);
  module.def("rle_check", &check, "runs"_a, "height"_a, "width"_a);
  module.def("rle_decode", &decode, "runs"_a, "offsets"_a, "height"_a, "width"_a);
  module.def("rle_encode", &encode, "bitmaps"_a);
  module.def("rle_from_polygons", &from_polygons, "points"_a, "ring_offsets"_a, "height"_a, "width"_a, "even_odd"_a);
  module.def("rle_from_strings", &from_strings, "strings"_a, "sizes"_a);
  module.def("rle_iou", &iou, "detection_runs"_a, "detection_offsets"_a, "truth_runs"_a, "truth_offsets"_a,
             "is_crowd"_a, "height"_a, "width"_a, "threads"_a);
  module.def("rle_merge", &merge, "runs"_a, "offsets"_a, "intersect"_a);
  module.def("rle_to_polygons", &to_polygons, "runs"_a, "height"_a, "width"_a);
  module.def("rle_to_strings", &to_strings, "runs"_a, "offsets"_a);
}

}  // namespace centermask::python
