// The one place that knows how Python hands arrays over. Every register_<op>.cc goes through these functions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "centermask/cuda.h"
#include "centermask/error.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"
#include "centermask/workspace.h"

namespace centermask::python {

namespace py = pybind11;

// A view of a NumPy array, any strides that are whole elements, or of the tensor in a DLPack capsule, on any device.
// None gives an absent view when `optional`. Throws Error(kType) naming op and argument when the object is none of
// these or has a dtype that no op takes.
//
// The capsule is read, not consumed: like an array it owns its memory, which lives as long as the argument does, and
// its own destructor gives the tensor back. The caller of the module sees to the order of work on the device, by having
// the capsule made without synchronisation (stream -1) and passing the stream that the tensor's library is working on.
TensorView device_view_of(const py::handle& object, const char* op, const char* argument, bool optional = false);

// The same, but only of memory that the CPU reads; Error(kValue) for what lies elsewhere.
TensorView view_of(const py::handle& object, const char* op, const char* argument, bool optional = false);

// An argument and its name, for check_devices().
struct Named {
  const char* name;
  const TensorView& view;
};

// All that are present must lie on the device of the first, and that must be a CUDA device; its ordinal.
int check_devices(const char* op, std::initializer_list<Named> arguments);

// Scratch memory for one call on a CUDA device, from `allocate`: a function that takes a number of bytes (not called
// for none) and returns (address, object that owns the memory). The owner is let go when this goes out of scope, with
// the work still under way: allocators of CUDA libraries give memory out again in the order of the stream.
class DeviceMemory {
 public:
  DeviceMemory(const py::object& allocate, std::size_t bytes);
  const Workspace& workspace() const { return workspace_; }

 private:
  py::object owner_;
  Workspace workspace_;
};

// The stream whose handle (cudaStream_t) Python knows as a number.
inline CudaStream stream_of(std::uintptr_t handle, int device) { return {reinterpret_cast<void*>(handle), device}; }

// A new, uninitialised, row-major NumPy array.
py::array new_array(DType dtype, const std::vector<std::int64_t>& shape);

// The pool for `threads` threads (0: one for each core), made on first use and kept by this module. Call it with the
// GIL held: then a fork by Python never finds its lock taken.
ParallelFor threads_of(int threads);

void register_errors(py::module_& module);

}  // namespace centermask::python
