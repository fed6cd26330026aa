// ONNX Runtime's C API, as far as this example calls it.
//
// With onnxruntime_c_api.h at hand (CMake: ONNXRUNTIME_INCLUDE_DIR) that is what gets included, and a program of yours
// would do just so. pip's onnxruntime brings the library but no header: the declarations here then stand in for it. The
// API is a table that only grows at its end, so that a function is known by its place; check_ort_c_api.cc compares the
// places with the real header.
#pragma once

#ifdef CENTERMASK_HAVE_ONNXRUNTIME_HEADER
#include <onnxruntime_c_api.h>
#else

#include <cstddef>
#include <cstdint>

#ifdef CENTERMASK_CHECK_ORT_C_API  // beside the real header
namespace ort_subset {
#endif

struct OrtEnv;
struct OrtStatus;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtValue;
struct OrtMemoryInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtModelMetadata;
struct OrtAllocator;
struct OrtCUDAProviderOptionsV2;

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE = 11,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32 = 12,
};

// Members in the order of the table; an array stands for functions that are not used here.
struct OrtApi {
  using Unused = void (*)();
  Unused unused_0[2];
  const char* (*GetErrorMessage)(const OrtStatus*);
  OrtStatus* (*CreateEnv)(OrtLoggingLevel, const char* name, OrtEnv**);
  Unused unused_4[3];
  OrtStatus* (*CreateSession)(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**);
  Unused unused_8[1];
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const* input_names, const OrtValue* const* inputs,
                    std::size_t input_count, const char* const* output_names, std::size_t output_count,
                    OrtValue** outputs);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
  Unused unused_11[13];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int);
  Unused unused_25[5];
  OrtStatus* (*SessionGetInputCount)(const OrtSession*, std::size_t*);
  OrtStatus* (*SessionGetOutputCount)(const OrtSession*, std::size_t*);
  Unused unused_32[4];
  OrtStatus* (*SessionGetInputName)(const OrtSession*, std::size_t index, OrtAllocator*, char**);
  OrtStatus* (*SessionGetOutputName)(const OrtSession*, std::size_t index, OrtAllocator*, char**);
  Unused unused_38[11];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, std::size_t bytes,
                                               const std::int64_t* shape, std::size_t rank, ONNXTensorElementDataType,
                                               OrtValue**);
  Unused unused_50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
  Unused unused_52[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, std::size_t*);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t);
  Unused unused_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);
  Unused unused_66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo**);
  Unused unused_70[6];
  OrtStatus* (*AllocatorFree)(OrtAllocator*, void*);
  Unused unused_77[1];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**);
  Unused unused_79[13];
  void (*ReleaseEnv)(OrtEnv*);
  void (*ReleaseStatus)(OrtStatus*);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
  void (*ReleaseSession)(OrtSession*);
  void (*ReleaseValue)(OrtValue*);
  Unused unused_97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);
  void (*ReleaseSessionOptions)(OrtSessionOptions*);
  Unused unused_101[10];
  OrtStatus* (*SessionGetModelMetadata)(const OrtSession*, OrtModelMetadata**);
  Unused unused_112[4];
  OrtStatus* (*ModelMetadataLookupCustomMetadataMap)(const OrtModelMetadata*, OrtAllocator*, const char* key, char**);
  Unused unused_117[1];
  void (*ReleaseModelMetadata)(OrtModelMetadata*);
  Unused unused_119[85];
  OrtStatus* (*SessionOptionsAppendExecutionProvider_CUDA_V2)(OrtSessionOptions*, const OrtCUDAProviderOptionsV2*);
  OrtStatus* (*CreateCUDAProviderOptions)(OrtCUDAProviderOptionsV2**);
  Unused unused_206[2];
  void (*ReleaseCUDAProviderOptions)(OrtCUDAProviderOptionsV2*);
  Unused unused_209[19];
  OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions*, const char* path);  // the newest: API 14
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(std::uint32_t version);  // null where the runtime is older
  const char* (*GetVersionString)();
};

#ifdef CENTERMASK_CHECK_ORT_C_API
}  // namespace ort_subset
#endif

#endif
