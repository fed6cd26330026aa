// The one place that knows how Python hands arrays over. Every register_<op>.cc goes through these functions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "centermask/error.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"

namespace centermask::python {

namespace py = pybind11;

// A view of a NumPy array, any strides that are whole elements. None gives an absent view when `optional`.
// Throws Error(kType) naming op and argument when the object is no array or has a dtype that no op takes.
TensorView view_of(const py::handle& object, const char* op, const char* argument, bool optional = false);

// A new, uninitialised, row-major NumPy array.
py::array new_array(DType dtype, const std::vector<std::int64_t>& shape);

// The pool for `threads` threads (0: one for each core), made on first use and kept by this module. Call it with the
// GIL held: then a fork by Python never finds its lock taken.
ParallelFor threads_of(int threads);

void register_errors(py::module_& module);

}  // namespace centermask::python
