#include "array.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace centermask::python {

namespace {

bool dtype_of(const py::dtype& dtype, DType& result) {
  if (dtype.byteorder() == '>') return false;
  const char kind = dtype.kind();
  const auto size = dtype.itemsize();
  if (kind == 'f' && size == 4) return result = DType::kFloat32, true;
  if (kind == 'f' && size == 8) return result = DType::kFloat64, true;
  if (kind == 'f' && size == 2) return result = DType::kFloat16, true;
  if ((kind == 'u' || kind == 'b') && size == 1) return result = DType::kUInt8, true;
  if (kind == 'u' && size == 4) return result = DType::kUInt32, true;
  if (kind == 'i' && size == 4) return result = DType::kInt32, true;
  if (kind == 'i' && size == 8) return result = DType::kInt64, true;
  return false;
}

}  // namespace

TensorView view_of(const py::handle& object, const char* op, const char* argument, bool optional) {
  TensorView view;
  if (object.is_none()) {
    if (optional) return view;
    fail(ErrorKind::kType, op, ": ", argument, " must be an array, got None");
  }
  if (!py::isinstance<py::array>(object)) {
    fail(ErrorKind::kType, op, ": ", argument, " must be a NumPy array, got ",
         py::str(py::type::handle_of(object)).cast<std::string>());
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!dtype_of(array.dtype(), view.dtype)) {
    fail(ErrorKind::kType, op, ": ", argument, " has dtype ", py::str(array.dtype()).cast<std::string>(),
         ", which no operation takes");
  }
  if (array.ndim() > kMaxRank) {
    fail(ErrorKind::kValue, op, ": ", argument, " has ", array.ndim(), " dimensions, at most ", kMaxRank, " are taken");
  }
  view.data = const_cast<void*>(array.data());
  view.rank = static_cast<int>(array.ndim());
  const std::int64_t item = array.itemsize();
  if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(item) != 0) {
    fail(ErrorKind::kValue, op, ": ", argument, " is not aligned to its elements; pass a copy");
  }
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = array.shape(i);
    if (array.strides(i) % item != 0) {
      fail(ErrorKind::kValue, op, ": ", argument, " has strides that are not whole elements; pass a copy");
    }
    view.stride[i] = array.strides(i) / item;
  }
  return view;
}

py::array new_array(DType dtype, const std::vector<std::int64_t>& shape) {
  return py::array(py::dtype(dtype_name(dtype)), std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

ParallelFor threads_of(int threads) {
  constexpr int kMost = 4096;
  if (threads < 0 || threads > kMost) {
    fail(ErrorKind::kValue, "threads must be 1..", kMost, ", or None for one for each core, got ", threads);
  }
  if (threads == 0) threads = std::min(kMost, static_cast<int>(std::thread::hardware_concurrency()));
  if (threads <= 1) return {};
  static std::mutex mutex;
  // Never destroyed: at exit another thread may still be inside an operation.
  static auto* pools = new std::map<int, std::unique_ptr<ThreadPool>>;
  std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<ThreadPool>& pool = (*pools)[threads];
  if (!pool) pool = std::make_unique<ThreadPool>(threads);
  return pool->parallel_for();
}

void register_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyObject* type = PyExc_ValueError;
      if (error.kind() == ErrorKind::kType) type = PyExc_TypeError;
      if (error.kind() == ErrorKind::kUnsupported) type = PyExc_NotImplementedError;
      if (error.kind() == ErrorKind::kRuntime) type = PyExc_RuntimeError;
      PyErr_SetString(type, error.what());
    }
  });
}

}  // namespace centermask::python
