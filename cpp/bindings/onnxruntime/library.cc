// RegisterCustomOps: what ONNX Runtime calls when it loads this library.
#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>

#include "centermask/error.h"
#include "kernel.h"

namespace centermask::ort {

namespace {

constexpr const char* kDomain = "centermask";
// Of the API: the newest that is used (17 lends threads and asks for shapes, 16 has error codes) and the oldest that
// will do (15 has constant inputs).
constexpr int kNewestApi = 17, kOldestApi = 15;
constexpr int kOperatorVersion = 1;

// Calls a function that may throw, and makes a status of what it throws.
template <class Function>
Status* guarded(const Api& api, Function&& function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const Error& error) {
    const ErrorCode code = error.kind() == ErrorKind::kUnsupported ? kNotImplemented
                           : error.kind() == ErrorKind::kRuntime   ? kRuntimeException
                                                                   : kInvalidArgument;
    return api.CreateStatus(code, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(kRuntimeException, "centermask: out of memory");
  } catch (const std::exception& error) {
    return api.CreateStatus(kFail, error.what());
  } catch (...) {
    return api.CreateStatus(kFail, "centermask: unknown error");
  }
}

// A description together with the callbacks that answer for it.
class Operator : public CustomOp {
 public:
  Operator(const Api& api, Description description) : CustomOp{}, api_(api), description_(std::move(description)) {
    version = static_cast<std::uint32_t>(api.version());
    CreateKernel = [](const CustomOp* op, const Api::Function*, const KernelInfo* info) -> void* {
      return self(op).create(info);  // throws: this old API has no other way
    };
    GetName = [](const CustomOp* op) { return self(op).description_.name; };
    GetExecutionProviderType = [](const CustomOp* op) -> const char* {
      return self(op).description_.device == DeviceType::kCuda ? "CUDAExecutionProvider" : nullptr;
    };
    GetInputType = [](const CustomOp* op, std::size_t i) { return self(op).description_.inputs[i].type; };
    GetInputTypeCount = [](const CustomOp* op) { return self(op).description_.inputs.size(); };
    GetOutputType = [](const CustomOp* op, std::size_t i) { return self(op).description_.outputs[i]; };
    GetOutputTypeCount = [](const CustomOp* op) { return self(op).description_.outputs.size(); };
    KernelCompute = [](void* kernel, KernelContext* context) { static_cast<Node*>(kernel)->compute(context); };
    KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
    GetInputCharacteristic = [](const CustomOp* op, std::size_t i) {
      return self(op).description_.inputs[i].optional ? kOptional : kRequired;
    };
    GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp* op, std::size_t i) {
      return self(op).description_.inputs[i].on_cpu ? kMemoryCpuInput : kMemoryDefault;
    };
    // There are no variadic arguments, but runtimes ask all the same, and refuse other answers than these.
    GetVariadicInputMinArity = GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
    GetVariadicOutputMinArity = GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
    CreateKernelV2 = [](const CustomOp* op, const Api::Function*, const KernelInfo* info, void** kernel) {
      return guarded(self(op).api_, [&] { *kernel = self(op).create(info); });
    };
    KernelComputeV2 = [](void* kernel, KernelContext* context) {
      const Node& node = *static_cast<const Node*>(kernel);
      return guarded(node.op.api_, [&] { node.compute(context); });
    };
    // Up to 1.23 at least, runtimes that are given this function crash where a node leaves out an optional input; 1.25
    // does not.
    const bool has_optional = std::any_of(description_.inputs.begin(), description_.inputs.end(),
                                          [](const Argument& argument) { return argument.optional; });
    if (description_.infer != nullptr && (!has_optional || api.runtime() >= 25)) {
      InferOutputShapeFn = [](const CustomOp* op, ShapeContext* context) {
        const Operator& me = self(op);
        return guarded(me.api_, [&] { me.description_.infer(ShapeInference(me.api_, context)); });
      };
    }
    GetStartVersion = GetEndVersion = [](const CustomOp*) { return kOperatorVersion; };
    GetMayInplace = GetAliasMap = [](int**, int**) { return std::size_t{0}; };
    ReleaseMayInplace = ReleaseAliasMap = [](int*, int*) {};
  }

 private:
  // A kernel, with the way back to its operator.
  struct Node {
    const Operator& op;
    std::unique_ptr<Kernel> kernel;
    void compute(KernelContext* context) const { kernel->compute(Run(op.api_, context, op.description_.device)); }
  };

  static const Operator& self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

  Node* create(const KernelInfo* info) const {
    return new Node{*this, description_.create(NodeInfo(api_, info), description_)};
  }

  const Api& api_;
  const Description description_;
};

// The operators for one ONNX Runtime and one version of its API. The runtime keeps pointers to them, so that they live
// as long as the process; there are as many as runtimes in it, which is one.
struct Library {
  Api api;
  std::vector<std::unique_ptr<Operator>> operators;
  CustomOpDomain* domain = nullptr;

  explicit Library(const Api& runtime) : api(runtime) {
    std::vector<Description> descriptions;
    describe_deform_conv(descriptions);
    describe_decode_centers(descriptions);
    describe_gather_patches(descriptions);
    describe_assemble_masks(descriptions);
    check(api, api.CreateCustomOpDomain(kDomain, &domain));
    for (Description& description : descriptions) {
      operators.push_back(std::make_unique<Operator>(api, std::move(description)));
      check(api, api.CustomOpDomain_Add(domain, operators.back().get()));
    }
  }
};

const Library& library_for(const Api& api) {
  static std::mutex mutex;
  static auto& libraries = *new std::vector<std::unique_ptr<Library>>;  // never destroyed: see Library
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& library : libraries) {
    if (library->api.table() == api.table()) return *library;
  }
  libraries.push_back(std::make_unique<Library>(api));
  return *libraries.back();
}

}  // namespace

}  // namespace centermask::ort

extern "C" __attribute__((visibility("default"))) centermask::ort::Status* RegisterCustomOps(
    centermask::ort::SessionOptions* options, const centermask::ort::ApiBase* base) {
  using namespace centermask::ort;
  const char* text = base->GetVersionString();
  const char* point = std::strchr(text, '.');
  const int runtime = std::strncmp(text, "1.", 2) == 0 ? std::atoi(point + 1) : INT_MAX;
  // A runtime that is asked for a version that it does not have says so on stderr: 1.15 is not asked for 17.
  const int newest = std::min(runtime, kNewestApi);
  for (int version = newest; version >= kOldestApi; --version) {
    const Api::Function* table = base->GetApi(static_cast<std::uint32_t>(version));
    if (table == nullptr) continue;
    const Api api(table, version, runtime);
    return guarded(api, [&] { check(api, api.AddCustomOpDomain(options, library_for(api).domain)); });
  }
  // A null result would pass for success, and the user would read that an operator is not registered.
  const Api oldest(base->GetApi(1), 1, runtime);
  if (oldest.table() == nullptr) return nullptr;
  const std::string message = std::string("centermask: needs ONNX Runtime 1.15 or newer, this is ") + text;
  return oldest.CreateStatus(kNotImplemented, message.c_str());
}
