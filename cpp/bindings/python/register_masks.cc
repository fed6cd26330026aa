#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>

#include "array.h"
#include "centermask/masks.h"
#include "register.h"

namespace centermask::python {

namespace {

constexpr const char* kOp = "assemble_masks";

AssembleMasksParams params_of(const std::string& head, std::int64_t height, std::int64_t width,
                              const std::array<double, 6>& image_to_input, std::int64_t stride, double threshold,
                              double box_margin) {
  AssembleMasksParams params;
  params.head = head == "shape" ? MaskHead::kShape : MaskHead::kDynamic;
  params.image_height = height;
  params.image_width = width;
  std::copy(image_to_input.begin(), image_to_input.end(), params.image_to_input);
  params.stride = stride;
  params.threshold = threshold;
  params.box_margin = box_margin;
  return params;
}

AssembleMasksInputs inputs_of(const py::array& features, const py::array& mask_params, const py::array& boxes,
                              const py::object& labels) {
  return {view_of(features, kOp, "mask_features"), view_of(mask_params, kOp, "mask_params"),
          view_of(boxes, kOp, "boxes"), view_of(labels, kOp, "labels", true)};
}

// The windows' pixels, one row for each instance.
std::vector<std::int64_t> windows_of(const AssembleMasksParams& params, const TensorView& boxes) {
  const std::int64_t count = boxes.rank == 2 ? boxes.shape[0] : 0;
  std::vector<std::int64_t> windows(static_cast<std::size_t>(4 * count));
  mask_windows(params, boxes, make_view(windows.data(), DType::kInt64, {count, 4}));
  return windows;
}

py::array windows_array(const std::vector<std::int64_t>& windows) {
  py::array result = new_array(DType::kInt64, {static_cast<std::int64_t>(windows.size() / 4), 4});
  std::copy(windows.begin(), windows.end(), static_cast<std::int64_t*>(result.mutable_data()));
  return result;
}

py::tuple runs(const py::array& features, const py::array& mask_params, const py::array& boxes,
               const py::object& labels, const std::string& head, std::int64_t height, std::int64_t width,
               const std::array<double, 6>& image_to_input, std::int64_t stride, double threshold, double box_margin,
               int threads) {
  const AssembleMasksParams params = params_of(head, height, width, image_to_input, stride, threshold, box_margin);
  const AssembleMasksInputs inputs = inputs_of(features, mask_params, boxes, labels);
  const std::int64_t count = inputs.boxes.rank == 2 ? inputs.boxes.shape[0] : 0;
  py::array offsets = new_array(DType::kInt64, {count + 1});
  const TensorView offsets_view = view_of(offsets, kOp, "offsets");
  const ParallelFor parallel = threads_of(threads);
  // Most masks have two runs in each pixel column. Where these do not suffice, they tell how many are needed.
  std::int64_t capacity = 16 * count;
  const std::vector<std::int64_t> windows = windows_of(params, inputs.boxes);
  for (std::size_t i = 0; i < windows.size(); i += 4) capacity += 2 * windows[i + 2];
  std::unique_ptr<std::uint32_t[]> values;
  std::int64_t needed = 0;
  {
    py::gil_scoped_release release;
    while (true) {
      values.reset(new std::uint32_t[static_cast<std::size_t>(capacity)]);
      needed = assemble_masks_cpu(params, inputs, make_view(values.get(), DType::kUInt32, {capacity}), offsets_view,
                                  parallel);
      if (needed <= capacity) break;
      capacity = needed;
    }
  }
  // The array takes over the memory: runs of large images are not copied once more.
  const py::capsule owner(values.get(), [](void* memory) { delete[] static_cast<std::uint32_t*>(memory); });
  const py::array result(py::dtype::of<std::uint32_t>(), {static_cast<py::ssize_t>(needed)}, {}, values.release(),
                         owner);
  return py::make_tuple(result, offsets);
}

py::tuple bitmaps(const py::array& features, const py::array& mask_params, const py::array& boxes,
                  const py::object& labels, const std::string& head, std::int64_t height, std::int64_t width,
                  const std::array<double, 6>& image_to_input, std::int64_t stride, double threshold, double box_margin,
                  int threads) {
  const AssembleMasksParams params = params_of(head, height, width, image_to_input, stride, threshold, box_margin);
  const AssembleMasksInputs inputs = inputs_of(features, mask_params, boxes, labels);
  const std::vector<std::int64_t> windows = windows_of(params, inputs.boxes);
  std::int64_t area = 0;
  for (std::size_t i = 0; i < windows.size(); i += 4) area += windows[i + 2] * windows[i + 3];
  py::array pixels = new_array(DType::kUInt8, {area});
  const TensorView pixels_view = view_of(pixels, kOp, "bitmaps");
  const ParallelFor parallel = threads_of(threads);
  {
    py::gil_scoped_release release;
    assemble_bitmaps_cpu(params, inputs, pixels_view, parallel);
  }
  return py::make_tuple(windows_array(windows), pixels);
}

#ifdef CENTERMASK_HAS_CUDA
AssembleMasksInputs cuda_inputs_of(const py::object& features, const py::object& mask_params, const py::object& boxes,
                                   const py::object& labels) {
  return {device_view_of(features, kOp, "mask_features"), device_view_of(mask_params, kOp, "mask_params"),
          device_view_of(boxes, kOp, "boxes"), device_view_of(labels, kOp, "labels", true)};
}

int check_devices_of(const AssembleMasksInputs& inputs, const Named& output) {
  return check_devices(kOp, {{"mask_features", inputs.mask_features},
                             {"mask_params", inputs.mask_params},
                             {"boxes", inputs.boxes},
                             {"labels", inputs.labels},
                             output});
}

void runs_on_cuda(const py::object& features, const py::object& mask_params, const py::object& boxes,
                  const py::object& labels, const std::string& head, std::int64_t height, std::int64_t width,
                  const std::array<double, 6>& image_to_input, std::int64_t stride, double threshold, double box_margin,
                  const py::object& runs, const py::object& offsets, const py::object& allocate,
                  std::uintptr_t stream_handle) {
  const AssembleMasksParams params = params_of(head, height, width, image_to_input, stride, threshold, box_margin);
  const AssembleMasksInputs inputs = cuda_inputs_of(features, mask_params, boxes, labels);
  const TensorView runs_view = device_view_of(runs, kOp, "runs"),
                   offsets_view = device_view_of(offsets, kOp, "offsets");
  check_devices_of(inputs, {"offsets", offsets_view});
  const int device = check_devices_of(inputs, {"runs", runs_view});
  const DeviceMemory memory(allocate, assemble_masks_workspace_cuda(params, inputs));
  py::gil_scoped_release release;
  assemble_masks_cuda(params, inputs, memory.workspace(), runs_view, offsets_view, stream_of(stream_handle, device));
}

void bitmaps_on_cuda(const py::object& features, const py::object& mask_params, const py::object& boxes,
                     const py::object& labels, const std::string& head, std::int64_t height, std::int64_t width,
                     const std::array<double, 6>& image_to_input, std::int64_t stride, double threshold,
                     double box_margin, const py::object& bitmaps, std::uintptr_t stream_handle) {
  const AssembleMasksParams params = params_of(head, height, width, image_to_input, stride, threshold, box_margin);
  const AssembleMasksInputs inputs = cuda_inputs_of(features, mask_params, boxes, labels);
  const TensorView bitmaps_view = device_view_of(bitmaps, kOp, "bitmaps");
  const int device = check_devices_of(inputs, {"bitmaps", bitmaps_view});
  py::gil_scoped_release release;
  assemble_bitmaps_cuda(params, inputs, bitmaps_view, stream_of(stream_handle, device));
}
#endif

}  // namespace

void register_masks(py::module_& module) {
  using namespace py::literals;
  const auto define = [&](const char* name, auto function) {
    module.def(name, function, "mask_features"_a, "mask_params"_a, "boxes"_a, "labels"_a, "head"_a, "height"_a,
               "width"_a, "image_to_input"_a, "stride"_a, "threshold"_a, "box_margin"_a, "threads"_a);
  };
  define("assemble_bitmaps", &bitmaps);
  define("assemble_masks", &runs);
  module.def(
      "mask_windows",
      [](const py::array& boxes, std::int64_t height, std::int64_t width, const std::array<double, 6>& image_to_input,
         double box_margin) {
        const AssembleMasksParams params = params_of("dynamic", height, width, image_to_input, 1, 0, box_margin);
        return windows_array(windows_of(params, view_of(boxes, kOp, "boxes")));
      },
      "boxes"_a, "height"_a, "width"_a, "image_to_input"_a, "box_margin"_a);
#ifdef CENTERMASK_HAS_CUDA
  module.def("assemble_masks_cuda", &runs_on_cuda, "mask_features"_a, "mask_params"_a, "boxes"_a, "labels"_a, "head"_a,
             "height"_a, "width"_a, "image_to_input"_a, "stride"_a, "threshold"_a, "box_margin"_a, "runs"_a,
             "offsets"_a, "allocate"_a, "stream_handle"_a);
  module.def("assemble_bitmaps_cuda", &bitmaps_on_cuda, "mask_features"_a, "mask_params"_a, "boxes"_a, "labels"_a,
             "head"_a, "height"_a, "width"_a, "image_to_input"_a, "stride"_a, "threshold"_a, "box_margin"_a,
             "bitmaps"_a, "stream_handle"_a);
#endif
}

}  // namespace centermask::python
