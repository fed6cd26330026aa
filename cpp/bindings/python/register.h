// One register_<op> function for each register_<op>.cc; module.cc calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace centermask::python {

namespace py = pybind11;

void register_build(py::module_& module);
void register_decode(py::module_& module);
void register_deform_conv2d(py::module_& module);
void register_gather(py::module_& module);
void register_isa(py::module_& module);
void register_masks(py::module_& module);
void register_preprocess(py::module_& module);
void register_rle(py::module_& module);

}  // namespace centermask::python
