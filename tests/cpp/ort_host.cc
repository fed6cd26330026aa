#include "ort_host.h"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <type_traits>

// Of the library's own objects, which the test is linked with.
extern "C" centermask::ort::Status* RegisterCustomOps(centermask::ort::SessionOptions*,
                                                      const centermask::ort::ApiBase*);

namespace ort_host {

namespace {

template <class To, class From>
To* as(From* pointer) {
  return reinterpret_cast<To*>(const_cast<std::remove_const_t<From>*>(pointer));
}

Status* problem(ErrorCode code, const char* message) { return as<Status>(new Problem{code, message}); }

int asked_version = 0;    // of the last GetApi that gave a table
int offered_version = 0;  // the newest that this runtime has
std::string version_text;

// Each has the signature that api.h declares; a wrong one does not compile below.
Status* create_status(ErrorCode code, const char* message) { return problem(code, message); }
const char* get_message(const Status* status) { return as<Problem>(status)->message.c_str(); }
void release_status(Status* status) { delete as<Problem>(status); }
Status* create_domain(const char* name, CustomOpDomain** domain) {
  if (std::string(name) != "centermask") return problem(kFail, "another domain");
  *domain = as<CustomOpDomain>(new Registration);  // kept by the library as long as the process lives
  return nullptr;
}
Status* add_operator(CustomOpDomain* domain, const CustomOp* op) {
  as<Registration>(domain)->operators.push_back(op);
  return nullptr;
}
Status* add_domain(SessionOptions* options, CustomOpDomain* domain) {
  as<Registration>(options)->operators = as<Registration>(domain)->operators;
  return nullptr;
}
Status* get_data(Value* value, void** data) {
  auto* tensor = as<Tensor>(value);
  *data = tensor->device != nullptr ? tensor->device : tensor->bytes.data();
  return nullptr;
}
Status* get_info(const Value* value, TensorInfo** info) {
  *info = as<TensorInfo>(new Tensor{as<Tensor>(value)->type, as<Tensor>(value)->shape, {}, nullptr});
  return nullptr;
}
void release_info(TensorInfo* info) { delete as<Tensor>(info); }
Status* get_type(const TensorInfo* info, ElementType* type) {
  *type = as<Tensor>(info)->type;
  return nullptr;
}
Status* get_rank(const TensorInfo* info, std::size_t* rank) {
  *rank = as<Tensor>(info)->shape.size();
  return nullptr;
}
Status* get_dimensions(const TensorInfo* info, std::int64_t* dims, std::size_t rank) {
  for (std::size_t i = 0; i < rank; ++i) dims[i] = as<Tensor>(info)->shape[i];
  return nullptr;
}
Status* get_memory(const Value* value, const MemoryInfo** memory) {
  *memory = as<const MemoryInfo>(value);
  return nullptr;
}
Status* get_memory_id(const MemoryInfo*, int* id) {
  *id = 0;
  return nullptr;
}
template <class Map, class T>
Status* find_attribute(const Map& map, const char* name, T* out) {
  const auto found = map.find(name);
  if (found == map.end()) return problem(kFail, "no such attribute");
  *out = found->second;
  return nullptr;
}
Status* get_float(const KernelInfo* info, const char* name, float* out) {
  return find_attribute(as<Node>(info)->attributes.numbers, name, out);
}
Status* get_integer(const KernelInfo* info, const char* name, std::int64_t* out) {
  return find_attribute(as<Node>(info)->attributes.integers, name, out);
}
Status* get_text(const KernelInfo* info, const char* name, char* out, std::size_t* size) {
  std::string text;
  if (Status* status = find_attribute(as<Node>(info)->attributes.texts, name, &text)) return status;
  if (out != nullptr) {
    if (*size < text.size() + 1) return problem(kInvalidArgument, "too small");
    std::memcpy(out, text.c_str(), text.size() + 1);
  }
  *size = text.size() + 1;
  return nullptr;
}
Status* get_integers(const KernelInfo* info, const char* name, std::int64_t* out, std::size_t* size) {
  std::vector<std::int64_t> values;
  if (Status* status = find_attribute(as<Node>(info)->attributes.lists, name, &values)) return status;
  if (out != nullptr) std::copy(values.begin(), values.end(), out);
  *size = values.size();
  return nullptr;
}
Status* get_constant(const KernelInfo* info, std::size_t index, int* is_constant, const Value** value) {
  const Node& node = *as<Node>(info);
  *is_constant = index < node.constant.size() && node.constant[index] ? 1 : 0;
  *value = *is_constant != 0 ? as<const Value>(node.inputs[index]) : nullptr;
  return nullptr;
}
Status* get_input_count(const KernelContext* context, std::size_t* count) {
  *count = as<Call>(context)->inputs.size();
  return nullptr;
}
Status* get_input(const KernelContext* context, std::size_t index, const Value** value) {
  *value = as<const Value>(as<Call>(context)->inputs[index]);
  return nullptr;
}
Status* get_output(KernelContext* context, std::size_t index, const std::int64_t* dims, std::size_t rank,
                   Value** value) {
  Call& call = *as<Call>(context);
  if (call.outputs.size() <= index) call.outputs.resize(index + 1);
  Tensor& output = call.outputs[index];
  output.shape.assign(dims, dims + rank);
  const std::size_t bytes = static_cast<std::size_t>(output.size()) * item_size(output.type);
  output.bytes.assign(bytes, static_cast<char>(0xcd));  // whoever does not write all of it is found
  if (call.allocate != nullptr) output.device = call.allocate(bytes);
  *value = as<Value>(&output);
  return nullptr;
}
Status* get_stream(const KernelContext*, void** stream) {
  *stream = nullptr;
  return nullptr;
}
Status* parallel_for(const KernelContext*, void (*task)(void*, std::size_t), std::size_t total, std::size_t,
                     void* argument) {
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < total && i < 4; ++i) {
    threads.emplace_back([=] {
      for (std::size_t k = i; k < total; k += 4) task(argument, k);
    });
  }
  for (std::size_t k = 0; k < total; k += 4) task(argument, k);
  for (std::thread& thread : threads) thread.join();
  return nullptr;
}
void missing() { throw std::logic_error("a function that this version does not have was called"); }

// One for each version, as the library knows a runtime by its table.
Api::Function tables[64][280];

// A function's place, and that its type is the one declared there.
#define PLACE(name, function)                                                  \
  {                                                                            \
    const Api::name##Function typed = &function;                               \
    tables[version][place_of_##name] = reinterpret_cast<Api::Function>(typed); \
  }
#define CONSTANT(place, since, name, result, arguments) constexpr int place_of_##name = place;
CENTERMASK_ORT_FUNCTIONS(CONSTANT)
#undef CONSTANT

void fill_table(int version) {
  for (Api::Function& entry : tables[version]) entry = &missing;
  PLACE(CreateStatus, create_status)
  PLACE(GetErrorMessage, get_message)
  PLACE(ReleaseStatus, release_status)
  PLACE(CreateCustomOpDomain, create_domain)
  PLACE(CustomOpDomain_Add, add_operator)
  PLACE(AddCustomOpDomain, add_domain)
  PLACE(GetTensorMutableData, get_data)
  PLACE(GetTensorTypeAndShape, get_info)
  PLACE(ReleaseTensorTypeAndShapeInfo, release_info)
  PLACE(GetTensorElementType, get_type)
  PLACE(GetDimensionsCount, get_rank)
  PLACE(GetDimensions, get_dimensions)
  PLACE(GetTensorMemoryInfo, get_memory)
  PLACE(MemoryInfoGetId, get_memory_id)
  PLACE(KernelInfoGetAttribute_float, get_float)
  PLACE(KernelInfoGetAttribute_int64, get_integer)
  PLACE(KernelInfoGetAttribute_string, get_text)
  PLACE(KernelInfoGetAttributeArray_int64, get_integers)
  PLACE(KernelContext_GetInputCount, get_input_count)
  PLACE(KernelContext_GetInput, get_input)
  PLACE(KernelContext_GetOutput, get_output)
  PLACE(KernelContext_GetGPUComputeStream, get_stream)
  if (version >= 15) PLACE(KernelInfoGetConstantInput_tensor, get_constant)
  if (version >= 17) PLACE(KernelContext_ParallelFor, parallel_for)
}

const Api::Function* get_api(std::uint32_t version) {
  if (static_cast<int>(version) > offered_version) return nullptr;
  asked_version = static_cast<int>(version);
  return tables[offered_version];
}
const char* get_version() { return version_text.c_str(); }

void throw_if(Status* status) {
  if (status == nullptr) return;
  const std::string message = get_message(status);
  release_status(status);
  throw std::runtime_error(message);
}

}  // namespace

std::vector<const CustomOp*> operators(int version) {
  offered_version = version;
  version_text = "1." + std::to_string(version) + ".0";
  fill_table(version);
  static const ApiBase base{&get_api, &get_version};
  Registration registration;
  throw_if(RegisterCustomOps(as<SessionOptions>(&registration), &base));
  return registration.operators;
}

int version_asked_for() { return asked_version; }

const CustomOp* find(const std::vector<const CustomOp*>& all, const std::string& name, ElementType type, bool cuda) {
  for (const CustomOp* op : all) {
    const char* provider = op->GetExecutionProviderType(op);
    if (op->GetName(op) == name && op->GetInputType(op, 0) == type && (provider != nullptr) == cuda) return op;
  }
  throw std::runtime_error("no operator " + name);
}

Kernel::Kernel(const CustomOp* op, const Node& node) : op_(op) {
  if (op->version >= 16) {
    throw_if(op->CreateKernelV2(op, tables[offered_version], as<const KernelInfo>(&node), &kernel_));
  } else {
    kernel_ = op->CreateKernel(op, tables[offered_version], as<const KernelInfo>(&node));
  }
}

Kernel::~Kernel() { op_->KernelDestroy(kernel_); }

std::vector<Tensor> Kernel::run(const std::vector<const Tensor*>& inputs, void* (*allocate)(std::size_t)) const {
  Call call;
  call.inputs = inputs;
  call.allocate = allocate;
  call.outputs.resize(op_->GetOutputTypeCount(op_));
  for (std::size_t i = 0; i < call.outputs.size(); ++i) call.outputs[i].type = op_->GetOutputType(op_, i);
  auto* context = as<KernelContext>(&call);
  if (op_->version >= 16) {
    throw_if(op_->KernelComputeV2(kernel_, context));
  } else {
    op_->KernelCompute(kernel_, context);
  }
  return std::move(call.outputs);
}

}  // namespace ort_host
