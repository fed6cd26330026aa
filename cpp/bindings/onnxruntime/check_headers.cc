// Compares api.h with ONNX Runtime's own header, when CMake is given one (-DONNXRUNTIME_INCLUDE_DIR=...). Nothing to
// run: it compiles or it does not.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

#include "api.h"

// The header's functions must not have their results ignored, which is no part of a type.
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace {

using namespace centermask::ort;

// Whether two types are passed in the same way: pointers (to whatever), or numbers of one size and kind.
template <class A, class B>
constexpr bool same_argument = std::is_pointer_v<A> == std::is_pointer_v<B> && sizeof(A) == sizeof(B) &&
                               std::is_floating_point_v<A> == std::is_floating_point_v<B>;
template <>
constexpr bool same_argument<void, void> = true;

template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...)> {
  template <class F>
  struct Same : std::false_type {};
  template <class R2, class... A2>
  struct Same<R2 (*)(A2...)> {
    static constexpr bool compare() {
      if constexpr (sizeof...(A) != sizeof...(A2)) {
        return false;
      } else {
        return same_argument<R, R2> && (same_argument<A, A2> && ... && true);
      }
    }
    static constexpr bool value = compare();
  };
};
template <class R, class... A>
struct Signature<R (*)(A...) noexcept> : Signature<R (*)(A...)> {};

template <class F>
struct Plain {
  using Type = F;
};
template <class R, class... A>
struct Plain<R (*)(A...) noexcept> {
  using Type = R (*)(A...);
};

template <class Theirs, class Ours>
constexpr bool same_function = Signature<Theirs>::template Same<typename Plain<Ours>::Type>::value;

#define CENTERMASK_CHECK(place, since, name, result, arguments)                                       \
  static_assert(since > ORT_API_VERSION || offsetof(OrtApi, name) == (place) * sizeof(void*), #name); \
  static_assert(same_function<decltype(OrtApi::name), Api::name##Function>, #name);
CENTERMASK_ORT_FUNCTIONS(CENTERMASK_CHECK)
#undef CENTERMASK_CHECK

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ApiBase, GetApi));
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ApiBase, GetVersionString));

#define CENTERMASK_CHECK_FIELD(name)                                             \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(CustomOp, name), #name); \
  static_assert(same_function<decltype(OrtCustomOp::name), decltype(CustomOp::name)>, #name);
static_assert(offsetof(OrtCustomOp, version) == offsetof(CustomOp, version));
CENTERMASK_CHECK_FIELD(CreateKernel)
CENTERMASK_CHECK_FIELD(GetName)
CENTERMASK_CHECK_FIELD(GetExecutionProviderType)
CENTERMASK_CHECK_FIELD(GetInputType)
CENTERMASK_CHECK_FIELD(GetInputTypeCount)
CENTERMASK_CHECK_FIELD(GetOutputType)
CENTERMASK_CHECK_FIELD(GetOutputTypeCount)
CENTERMASK_CHECK_FIELD(KernelCompute)
CENTERMASK_CHECK_FIELD(KernelDestroy)
CENTERMASK_CHECK_FIELD(GetInputCharacteristic)
CENTERMASK_CHECK_FIELD(GetOutputCharacteristic)
CENTERMASK_CHECK_FIELD(GetInputMemoryType)
CENTERMASK_CHECK_FIELD(GetVariadicInputMinArity)
CENTERMASK_CHECK_FIELD(GetVariadicInputHomogeneity)
CENTERMASK_CHECK_FIELD(GetVariadicOutputMinArity)
CENTERMASK_CHECK_FIELD(GetVariadicOutputHomogeneity)
CENTERMASK_CHECK_FIELD(CreateKernelV2)
CENTERMASK_CHECK_FIELD(KernelComputeV2)
CENTERMASK_CHECK_FIELD(InferOutputShapeFn)
CENTERMASK_CHECK_FIELD(GetStartVersion)
CENTERMASK_CHECK_FIELD(GetEndVersion)
#if ORT_API_VERSION >= 18
CENTERMASK_CHECK_FIELD(GetMayInplace)
CENTERMASK_CHECK_FIELD(ReleaseMayInplace)
CENTERMASK_CHECK_FIELD(GetAliasMap)
CENTERMASK_CHECK_FIELD(ReleaseAliasMap)
#endif
#undef CENTERMASK_CHECK_FIELD

static_assert(static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) == kUndefined);
static_assert(static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) == kFloat);
static_assert(static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) == kInt64);
static_assert(static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) == kFloat16);
static_assert(static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE) == kDouble);
static_assert(static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32) == kUInt32);
static_assert(static_cast<int>(ORT_FAIL) == kFail);
static_assert(static_cast<int>(ORT_INVALID_ARGUMENT) == kInvalidArgument);
static_assert(static_cast<int>(ORT_RUNTIME_EXCEPTION) == kRuntimeException);
static_assert(static_cast<int>(ORT_NOT_IMPLEMENTED) == kNotImplemented);
static_assert(static_cast<int>(ORT_OP_ATTR_INT) == kAttributeInt);
static_assert(static_cast<int>(ORT_OP_ATTR_INTS) == kAttributeInts);
static_assert(static_cast<int>(OrtMemTypeCPUInput) == kMemoryCpuInput);
static_assert(static_cast<int>(OrtMemTypeDefault) == kMemoryDefault);
static_assert(static_cast<int>(INPUT_OUTPUT_REQUIRED) == kRequired);
static_assert(static_cast<int>(INPUT_OUTPUT_OPTIONAL) == kOptional);

}  // namespace
