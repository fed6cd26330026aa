#include "kernel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "centermask/error.h"

namespace centermask::ort {

namespace {

// Cores that this process may use: how far work and scratch memory are divided. The runtime does not tell how many
// threads it has; with fewer of them each takes several parts.
int cores() {
  cpu_set_t set;
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
  const int all = count > 0 ? count : static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(all, 1, 256);
}

struct Call {
  ParallelFor::Task task;
  void* argument;
  std::atomic<std::int64_t> next{0};
};

void run_on_runtime(void* host, std::int64_t count, ParallelFor::Task task, void* argument) {
  const auto& threads = *static_cast<const Run::RuntimeThreads*>(host);
  Call call{task, argument};
  const auto one = [](void* user, std::size_t) {
    Call& shared = *static_cast<Call*>(user);
    shared.task(shared.argument, shared.next.fetch_add(1));
  };
  Status* status = threads.api->KernelContext_ParallelFor(threads.context, one, static_cast<std::size_t>(count),
                                                          static_cast<std::size_t>(count), &call);
  if (status == nullptr) return;
  // It failed before or after all of it. Whatever is left is done here.
  threads.api->ReleaseStatus(status);
  for (std::int64_t i = call.next.fetch_add(1); i < count; i = call.next.fetch_add(1)) task(argument, i);
}

// For runtimes that do not lend their threads. Made when first needed, shared by all sessions, never taken down: at the
// end of the process there is no safe time for it.
ThreadPool& own_threads() {
  static ThreadPool& pool = *new ThreadPool(cores());
  return pool;
}

DType dtype_of(ElementType type) {
  switch (type) {
    case kFloat: return DType::kFloat32;
    case kFloat16: return DType::kFloat16;
    case kDouble: return DType::kFloat64;
    case kInt64: return DType::kInt64;
    case kUInt32: return DType::kUInt32;
    default: fail(ErrorKind::kType, "centermask: a tensor has ONNX element type ", static_cast<int>(type));
  }
}

class Info {
 public:
  Info(const Api& api, TensorInfo* info) : api_(api), info_(info) {}
  ~Info() { api_.ReleaseTensorTypeAndShapeInfo(info_); }
  Info(const Info&) = delete;
  Info& operator=(const Info&) = delete;

  ElementType type() const {
    ElementType type = kUndefined;
    check(api_, api_.GetTensorElementType(info_, &type));
    return type;
  }
  std::vector<std::int64_t> shape() const {
    std::size_t rank = 0;
    check(api_, api_.GetDimensionsCount(info_, &rank));
    std::vector<std::int64_t> dims(rank);
    check(api_, api_.GetDimensions(info_, dims.data(), rank));
    return dims;
  }
  const TensorInfo* get() const { return info_; }

 private:
  const Api& api_;
  TensorInfo* info_;
};

TensorView host_view(const Api& api, const Value* value) {
  TensorInfo* raw = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &raw));
  const Info info(api, raw);
  const std::vector<std::int64_t> shape = info.shape();
  if (shape.size() > kMaxRank) fail(ErrorKind::kValue, "centermask: a tensor has ", shape.size(), " dimensions");
  TensorView view;
  view.dtype = dtype_of(info.type());
  view.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = shape[static_cast<std::size_t>(i)];
    view.stride[i] = stride;
    stride *= view.shape[i];
  }
  // Not written through where the value is an input: the API has no other way to the data.
  check(api, api.GetTensorMutableData(const_cast<Value*>(value), &view.data));
  return view;
}

}  // namespace

void check(const Api& api, Status* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw Error(ErrorKind::kRuntime, "onnxruntime: " + message);
}

// ---- a node ----

namespace {

// Whether a call worked. The API says no more than "failed" of an attribute that is not there.
bool worked(const Api& api, Status* status) {
  if (status != nullptr) api.ReleaseStatus(status);
  return status == nullptr;
}

}  // namespace

// An attribute that is there, but of another type, must not pass for one that is not there.
void NodeInfo::refuse_other_types(const char* name, const char* expected) const {
  std::int64_t integer = 0;
  float number = 0;
  std::size_t size = 0;
  if (worked(api_, api_.KernelInfoGetAttribute_int64(info_, name, &integer)) ||
      worked(api_, api_.KernelInfoGetAttribute_float(info_, name, &number)) ||
      worked(api_, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size)) ||
      (worked(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) && size > 0)) {
    fail(ErrorKind::kType, "attribute ", name, " must be ", expected);
  }
}

std::int64_t NodeInfo::integer(const char* name, std::int64_t otherwise) const {
  std::int64_t value = 0;
  if (worked(api_, api_.KernelInfoGetAttribute_int64(info_, name, &value))) return value;
  refuse_other_types(name, "an integer");
  return otherwise;
}

float NodeInfo::number(const char* name, float otherwise) const {
  float value = 0;
  if (worked(api_, api_.KernelInfoGetAttribute_float(info_, name, &value))) return value;
  // Python's onnx.helper writes 0 and 1 as integers.
  std::int64_t whole = 0;
  if (worked(api_, api_.KernelInfoGetAttribute_int64(info_, name, &whole))) return static_cast<float>(whole);
  refuse_other_types(name, "a number");
  return otherwise;
}

std::string NodeInfo::text(const char* name, const char* otherwise) const {
  std::size_t size = 0;  // with the final zero
  if (!worked(api_, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size)) || size == 0) {
    if (size == 0) refuse_other_types(name, "a text");
    return otherwise;
  }
  std::string value(size, '\0');
  if (!worked(api_, api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size))) return otherwise;
  value.resize(size - 1);
  return value;
}

std::vector<std::int64_t> NodeInfo::integers(const char* name) const {
  std::size_t size = 0;
  // Of one number the runtime says that it is an empty list.
  if (!worked(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) || size == 0) {
    refuse_other_types(name, "a list of integers");
    return {};
  }
  std::vector<std::int64_t> values(size);
  if (!worked(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size))) return {};
  return values;
}

TensorView NodeInfo::constant_input(std::size_t index) const {
  int is_constant = 0;
  const Value* value = nullptr;
  if (!worked(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value)) || is_constant == 0 ||
      value == nullptr) {
    return {};
  }
  return host_view(api_, value);
}

// ---- a run ----

Run::Run(const Api& api, KernelContext* context, DeviceType device)
    : api_(api), context_(context), device_(device), threads_{&api, context} {
  check(api, api.KernelContext_GetInputCount(context, &input_count_));
  if (device == DeviceType::kCuda) return;
  if (api.version() >= 17) {
    static const int count = cores();
    parallel_for_ = {&run_on_runtime, &threads_, count};
  } else {
    parallel_for_ = own_threads().parallel_for();
  }
}

TensorView Run::input(std::size_t index, bool on_cpu) const {
  if (index >= input_count_) return {};
  const Value* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  return value == nullptr ? TensorView() : view_of(value, on_cpu);
}

TensorView Run::output(std::size_t index, const std::vector<std::int64_t>& shape) const {
  Value* value = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  if (value == nullptr) fail(ErrorKind::kValue, "centermask: output ", index, " of a node is not there");
  return view_of(value, false);
}

TensorView Run::view_of(const Value* value, bool on_cpu) const {
  TensorView view = host_view(api_, value);
  if (device_ == DeviceType::kCuda && !on_cpu) {
    const MemoryInfo* memory = nullptr;
    check(api_, api_.GetTensorMemoryInfo(value, &memory));
    view.device.type = DeviceType::kCuda;
    check(api_, api_.MemoryInfoGetId(memory, &view.device.index));
  }
  return view;
}

CudaStream Run::stream() const {
  CudaStream stream;
  check(api_, api_.KernelContext_GetGPUComputeStream(context_, &stream.handle));
  const TensorView first = input(0);
  stream.device = first.device.index;
  return stream;
}

}  // namespace centermask::ort
