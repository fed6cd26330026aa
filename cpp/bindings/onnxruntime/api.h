// The part of ONNX Runtime's C API that the custom operators use, so that no header of it is needed to build them.
//
// The API is a table of function pointers that only ever grows at its end: a function is known by its place, and
// `since` is the first version of the API that has it. check_headers.cc compares places and types with real headers
// where CMake was given some. What is behind the pointers is never looked at, so their types are empty.
#pragma once

#include <cstddef>
#include <cstdint>

namespace centermask::ort {

struct Status;
struct Value;
struct TensorInfo;
struct MemoryInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct Attribute;
struct SessionOptions;
struct CustomOpDomain;
struct CustomOp;

// Types are ints, as wide as C's enums.
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kInt64 = 7,
  kFloat16 = 10,
  kDouble = 11,
  kUInt32 = 12,
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6, kNotImplemented = 9 };

enum AttributeType : int { kAttributeInt = 1, kAttributeInts = 2 };

// Of an input: where the execution provider puts it.
enum MemoryType : int { kMemoryCpuInput = -2, kMemoryDefault = 0 };

enum Characteristic : int { kRequired = 0, kOptional = 1 };

// X(place, since, name, result, arguments)
#define CENTERMASK_ORT_FUNCTIONS(X)                                                                                    \
  X(0, 1, CreateStatus, Status*, (ErrorCode, const char*))                                                             \
  X(2, 1, GetErrorMessage, const char*, (const Status*))                                                               \
  X(26, 1, CreateCustomOpDomain, Status*, (const char*, CustomOpDomain**))                                             \
  X(27, 1, CustomOpDomain_Add, Status*, (CustomOpDomain*, const CustomOp*))                                            \
  X(28, 1, AddCustomOpDomain, Status*, (SessionOptions*, CustomOpDomain*))                                             \
  X(51, 1, GetTensorMutableData, Status*, (Value*, void**))                                                            \
  X(57, 1, CreateTensorTypeAndShapeInfo, Status*, (TensorInfo**))                                                      \
  X(58, 1, SetTensorElementType, Status*, (TensorInfo*, ElementType))                                                  \
  X(59, 1, SetDimensions, Status*, (TensorInfo*, const std::int64_t*, std::size_t))                                    \
  X(60, 1, GetTensorElementType, Status*, (const TensorInfo*, ElementType*))                                           \
  X(61, 1, GetDimensionsCount, Status*, (const TensorInfo*, std::size_t*))                                             \
  X(62, 1, GetDimensions, Status*, (const TensorInfo*, std::int64_t*, std::size_t))                                    \
  X(63, 1, GetSymbolicDimensions, Status*, (const TensorInfo*, const char**, std::size_t))                             \
  X(65, 1, GetTensorTypeAndShape, Status*, (const Value*, TensorInfo**))                                               \
  X(72, 1, MemoryInfoGetId, Status*, (const MemoryInfo*, int*))                                                        \
  X(85, 1, KernelInfoGetAttribute_float, Status*, (const KernelInfo*, const char*, float*))                            \
  X(86, 1, KernelInfoGetAttribute_int64, Status*, (const KernelInfo*, const char*, std::int64_t*))                     \
  X(87, 1, KernelInfoGetAttribute_string, Status*, (const KernelInfo*, const char*, char*, std::size_t*))              \
  X(88, 1, KernelContext_GetInputCount, Status*, (const KernelContext*, std::size_t*))                                 \
  X(90, 1, KernelContext_GetInput, Status*, (const KernelContext*, std::size_t, const Value**))                        \
  X(91, 1, KernelContext_GetOutput, Status*, (KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)) \
  X(93, 1, ReleaseStatus, void, (Status*))                                                                             \
  X(99, 1, ReleaseTensorTypeAndShapeInfo, void, (TensorInfo*))                                                         \
  X(163, 11, KernelInfoGetAttributeArray_int64, Status*,                                                               \
    (const KernelInfo*, const char*, std::int64_t*, std::size_t*))                                                     \
  X(193, 12, KernelContext_GetGPUComputeStream, Status*, (const KernelContext*, void**))                               \
  X(194, 12, GetTensorMemoryInfo, Status*, (const Value*, const MemoryInfo**))                                         \
  X(249, 15, KernelInfoGetConstantInput_tensor, Status*, (const KernelInfo*, std::size_t, int*, const Value**))        \
  X(268, 17, ShapeInferContext_GetInputTypeShape, Status*, (const ShapeContext*, std::size_t, TensorInfo**))           \
  X(269, 17, ShapeInferContext_GetAttribute, Status*, (const ShapeContext*, const char*, const Attribute**))           \
  X(270, 17, ShapeInferContext_SetOutputTypeShape, Status*, (const ShapeContext*, std::size_t, const TensorInfo*))     \
  X(271, 17, SetSymbolicDimensions, Status*, (TensorInfo*, const char**, std::size_t))                                 \
  X(272, 17, ReadOpAttr, Status*, (const Attribute*, AttributeType, void*, std::size_t, std::size_t*))                 \
  X(274, 17, KernelContext_ParallelFor, Status*,                                                                       \
    (const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*))

// The table, the version of it that was asked for, and y of the runtime's own version 1.y.
class Api {
 public:
  using Function = void (*)();
  Api() = default;
  Api(const Function* table, int version, int runtime) : table_(table), version_(version), runtime_(runtime) {}
  int version() const { return version_; }
  int runtime() const { return runtime_; }
  const Function* table() const { return table_; }

#define CENTERMASK_ORT_CALL(place, since, name, result, arguments)     \
  using name##Function = result(*) arguments;                          \
  template <class... Arguments>                                        \
  result name(Arguments... values) const {                             \
    return reinterpret_cast<name##Function>(table_[place])(values...); \
  }
  CENTERMASK_ORT_FUNCTIONS(CENTERMASK_ORT_CALL)
#undef CENTERMASK_ORT_CALL

 private:
  const Function* table_ = nullptr;
  int version_ = 0;
  int runtime_ = 0;
};

struct ApiBase {
  const Api::Function* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

// An operator as the runtime sees it. Fields were added over time; a runtime reads those of `version`.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api::Function* api, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);  // null: the CPU's
  ElementType (*GetInputType)(const CustomOp*, std::size_t);
  std::size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, std::size_t);
  std::size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, KernelContext*);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, std::size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, std::size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, std::size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  // since 16
  Status* (*CreateKernelV2)(const CustomOp*, const Api::Function* api, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  // since 17
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  // since 18
  std::size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  std::size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // namespace centermask::ort
