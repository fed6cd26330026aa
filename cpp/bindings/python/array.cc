#include "array.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "dlpack_abi.h"

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

bool dtype_of(const dlpack::Element& element, DType& result) {
  if (element.lanes != 1) return false;
  const int kind = element.kind, bits = element.bits;
  if (kind == dlpack::kFloat && bits == 32) return result = DType::kFloat32, true;
  if (kind == dlpack::kFloat && bits == 64) return result = DType::kFloat64, true;
  if (kind == dlpack::kFloat && bits == 16) return result = DType::kFloat16, true;
  if (kind == dlpack::kBFloat && bits == 16) return result = DType::kBFloat16, true;
  if ((kind == dlpack::kUInt || kind == dlpack::kBool) && bits == 8) return result = DType::kUInt8, true;
  if (kind == dlpack::kUInt && bits == 32) return result = DType::kUInt32, true;
  if (kind == dlpack::kInt && bits == 32) return result = DType::kInt32, true;
  if (kind == dlpack::kInt && bits == 64) return result = DType::kInt64, true;
  return false;
}

std::string device_text(const Device& device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

void check_aligned(const TensorView& view, const char* op, const char* argument) {
  if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(dtype_size(view.dtype)) != 0) {
    fail(ErrorKind::kValue, op, ": ", argument, " is not aligned to its elements; pass a copy");
  }
}

void check_rank(std::int64_t rank, const char* op, const char* argument) {
  if (rank > kMaxRank) {
    fail(ErrorKind::kValue, op, ": ", argument, " has ", rank, " dimensions, at most ", kMaxRank, " are taken");
  }
}

TensorView view_of_numpy(const py::array& array, const char* op, const char* argument) {
  TensorView view;
  if (!dtype_of(array.dtype(), view.dtype)) {
    fail(ErrorKind::kType, op, ": ", argument, " has dtype ", py::str(array.dtype()).cast<std::string>(),
         ", which no operation takes");
  }
  check_rank(array.ndim(), op, argument);
  view.data = const_cast<void*>(array.data());
  view.rank = static_cast<int>(array.ndim());
  check_aligned(view, op, argument);
  const std::int64_t item = array.itemsize();
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = array.shape(i);
    if (array.strides(i) % item != 0) {
      fail(ErrorKind::kValue, op, ": ", argument, " has strides that are not whole elements; pass a copy");
    }
    view.stride[i] = array.strides(i) / item;
  }
  return view;
}

// Null where the object is no capsule of DLPack's, or one that has been consumed.
const dlpack::Tensor* tensor_in(const py::handle& object) {
  PyObject* capsule = object.ptr();
  if (PyCapsule_IsValid(capsule, dlpack::kCapsule) != 0) {
    return &static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule))->tensor;
  }
  if (PyCapsule_IsValid(capsule, dlpack::kVersionedCapsule) != 0) {
    const auto* managed =
        static_cast<dlpack::ManagedTensorVersioned*>(PyCapsule_GetPointer(capsule, dlpack::kVersionedCapsule));
    if (managed->major == 1) return &managed->tensor;  // of another major version the layout is not known
  }
  return nullptr;
}

TensorView view_of_dlpack(const dlpack::Tensor& tensor, const char* op, const char* argument) {
  TensorView view;
  if (!dtype_of(tensor.element, view.dtype)) {
    fail(ErrorKind::kType, op, ": ", argument, " has the DLPack type (code ", int{tensor.element.kind}, ", bits ",
         int{tensor.element.bits}, ", lanes ", tensor.element.lanes, "), which no operation takes");
  }
  switch (tensor.device.kind) {
    case dlpack::kCpuMemory:
    case dlpack::kCudaHostMemory: break;
    case dlpack::kCudaMemory:
    case dlpack::kCudaManagedMemory: view.device = {DeviceType::kCuda, tensor.device.index}; break;
    default:
      fail(ErrorKind::kValue, op, ": ", argument, " must be on the CPU or a CUDA device, got DLPack device type ",
           tensor.device.kind);
  }
  check_rank(tensor.rank, op, argument);
  view.rank = tensor.rank;
  view.data = tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
  check_aligned(view, op, argument);
  std::int64_t dense = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = tensor.shape[i];
    view.stride[i] = tensor.strides == nullptr ? dense : tensor.strides[i];
    dense *= tensor.shape[i];
  }
  return view;
}

}  // namespace

TensorView device_view_of(const py::handle& object, const char* op, const char* argument, bool optional) {
  if (object.is_none()) {
    if (optional) return {};
    fail(ErrorKind::kType, op, ": ", argument, " must be an array, got None");
  }
  if (const dlpack::Tensor* tensor = tensor_in(object)) return view_of_dlpack(*tensor, op, argument);
  if (py::isinstance<py::array>(object)) {
    return view_of_numpy(py::reinterpret_borrow<py::array>(object), op, argument);
  }
  fail(ErrorKind::kType, op, ": ", argument,
       " must be a NumPy array or an unused DLPack capsule of version 0 or 1, got ",
       py::str(py::type::handle_of(object)).cast<std::string>());
}

TensorView view_of(const py::handle& object, const char* op, const char* argument, bool optional) {
  const TensorView view = device_view_of(object, op, argument, optional);
  if (view.device.type != DeviceType::kCpu) {
    fail(ErrorKind::kValue, op, ": ", argument, " must be on the CPU, got ", device_text(view.device));
  }
  if (view.dtype == DType::kBFloat16) {
    fail(ErrorKind::kType, op, ": ", argument, " has dtype bfloat16, which no operation takes on the CPU");
  }
  return view;
}

int check_devices(const char* op, std::initializer_list<Named> arguments) {
  const Named& first = *arguments.begin();
  for (const Named& argument : arguments) {
    if (!argument.view.present() || argument.view.device == first.view.device) continue;
    fail(ErrorKind::kValue, op, ": ", argument.name, " must be on the device of ", first.name, " (",
         device_text(first.view.device), "), got ", device_text(argument.view.device));
  }
  if (first.view.device.type != DeviceType::kCuda) {
    fail(ErrorKind::kValue, op, ": ", first.name, " must be on a CUDA device, got ", device_text(first.view.device));
  }
  return first.view.device.index;
}

DeviceMemory::DeviceMemory(const py::object& allocate, std::size_t bytes) {
  if (bytes == 0) return;
  const py::tuple given = allocate(bytes);
  if (given.size() != 2) throw py::type_error("allocate must return (address, owner)");
  owner_ = given[1];
  workspace_ = {reinterpret_cast<void*>(given[0].cast<std::uintptr_t>()), bytes};
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
