#include <pybind11/stl.h>

#include <array>

#include "array.h"
#include "centermask/preprocess.h"
#include "register.h"

namespace centermask::python {

namespace {

PreprocessParams params_of(const std::array<double, 6>& image_to_input, const std::array<double, 3>& mean,
                           const std::array<double, 3>& std_deviation, bool swap_channels) {
  PreprocessParams params;
  for (std::size_t i = 0; i < 6; ++i) params.image_to_input[i] = image_to_input[i];
  for (std::size_t c = 0; c < 3; ++c) params.mean[c] = mean[c];
  for (std::size_t c = 0; c < 3; ++c) params.std[c] = std_deviation[c];
  params.swap_channels = swap_channels;
  return params;
}

void preprocess(const py::object& image, const std::array<double, 6>& image_to_input, const std::array<double, 3>& mean,
                const std::array<double, 3>& std_deviation, bool swap_channels, const py::object& input, int threads) {
  const TensorView image_view = view_of(image, "preprocess", "image");
  const TensorView input_view = view_of(input, "preprocess", "out");
  const PreprocessParams params = params_of(image_to_input, mean, std_deviation, swap_channels);
  const ParallelFor parallel = threads_of(threads);
  py::gil_scoped_release release;
  preprocess_cpu(image_view, params, input_view, parallel);
}

#ifdef CENTERMASK_HAS_CUDA
void preprocess_on_cuda(const py::object& image, const std::array<double, 6>& image_to_input,
                        const std::array<double, 3>& mean, const std::array<double, 3>& std_deviation,
                        bool swap_channels, const py::object& input, std::uintptr_t stream_handle) {
  const TensorView image_view = device_view_of(image, "preprocess", "image");
  const TensorView input_view = device_view_of(input, "preprocess", "out");
  const int device = check_devices("preprocess", {{"image", image_view}, {"out", input_view}});
  const PreprocessParams params = params_of(image_to_input, mean, std_deviation, swap_channels);
  py::gil_scoped_release release;
  preprocess_cuda(image_view, params, input_view, stream_of(stream_handle, device));
}
#endif

}  // namespace

void register_preprocess(py::module_& module) {
  module.def("preprocess", &preprocess, py::arg("image"), py::arg("image_to_input"), py::arg("mean"), py::arg("std"),
             py::arg("swap_channels"), py::arg("out"), py::arg("threads"));
#ifdef CENTERMASK_HAS_CUDA
  module.def("preprocess_cuda", &preprocess_on_cuda, py::arg("image"), py::arg("image_to_input"), py::arg("mean"),
             py::arg("std"), py::arg("swap_channels"), py::arg("out"), py::arg("stream_handle"));
#endif
}

}  // namespace centermask::python
