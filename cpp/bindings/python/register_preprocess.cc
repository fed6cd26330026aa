#include <pybind11/stl.h>

#include <array>

#include "array.h"
#include "centermask/preprocess.h"
#include "register.h"

namespace centermask::python {

namespace {

void preprocess(const py::object& image, const std::array<double, 6>& image_to_input, const std::array<double, 3>& mean,
                const std::array<double, 3>& std_deviation, bool swap_channels, const py::object& input, int threads) {
  const TensorView image_view = view_of(image, "preprocess", "image");
  const TensorView input_view = view_of(input, "preprocess", "out");
  PreprocessParams params;
  for (std::size_t i = 0; i < 6; ++i) params.image_to_input[i] = image_to_input[i];
  for (std::size_t c = 0; c < 3; ++c) params.mean[c] = mean[c];
  for (std::size_t c = 0; c < 3; ++c) params.std[c] = std_deviation[c];
  params.swap_channels = swap_channels;
  const ParallelFor parallel = threads_of(threads);
  py::gil_scoped_release release;
  preprocess_cpu(image_view, params, input_view, parallel);
}

}  // namespace

void register_preprocess(py::module_& module) {
  module.def("preprocess", &preprocess, py::arg("image"), py::arg("image_to_input"), py::arg("mean"), py::arg("std"),
             py::arg("swap_channels"), py::arg("out"), py::arg("threads"));
}

}  // namespace centermask::python
