// Compares ort_c_api.h with ONNX Runtime's own header, where CMake was given one. Nothing to run: it compiles or not.
#include <onnxruntime_c_api.h>

#define CENTERMASK_CHECK_ORT_C_API
#undef CENTERMASK_HAVE_ONNXRUNTIME_HEADER
#include "ort_c_api.h"

#define SAME_PLACE(name) static_assert(offsetof(OrtApi, name) == offsetof(ort_subset::OrtApi, name), #name);
SAME_PLACE(GetErrorMessage)
SAME_PLACE(CreateEnv)
SAME_PLACE(CreateSession)
SAME_PLACE(Run)
SAME_PLACE(CreateSessionOptions)
SAME_PLACE(SetIntraOpNumThreads)
SAME_PLACE(SessionGetInputCount)
SAME_PLACE(SessionGetOutputCount)
SAME_PLACE(SessionGetInputName)
SAME_PLACE(SessionGetOutputName)
SAME_PLACE(CreateTensorWithDataAsOrtValue)
SAME_PLACE(GetTensorMutableData)
SAME_PLACE(GetTensorElementType)
SAME_PLACE(GetDimensionsCount)
SAME_PLACE(GetDimensions)
SAME_PLACE(GetTensorTypeAndShape)
SAME_PLACE(CreateCpuMemoryInfo)
SAME_PLACE(AllocatorFree)
SAME_PLACE(GetAllocatorWithDefaultOptions)
SAME_PLACE(ReleaseEnv)
SAME_PLACE(ReleaseStatus)
SAME_PLACE(ReleaseMemoryInfo)
SAME_PLACE(ReleaseSession)
SAME_PLACE(ReleaseValue)
SAME_PLACE(ReleaseTensorTypeAndShapeInfo)
SAME_PLACE(ReleaseSessionOptions)
SAME_PLACE(SessionGetModelMetadata)
SAME_PLACE(ModelMetadataLookupCustomMetadataMap)
SAME_PLACE(ReleaseModelMetadata)
SAME_PLACE(SessionOptionsAppendExecutionProvider_CUDA_V2)
SAME_PLACE(CreateCUDAProviderOptions)
SAME_PLACE(ReleaseCUDAProviderOptions)
SAME_PLACE(RegisterCustomOpsLibrary_V2)
#undef SAME_PLACE

#define SAME_NUMBER(name) static_assert(static_cast<int>(name) == static_cast<int>(ort_subset::name), #name);
SAME_NUMBER(ORT_LOGGING_LEVEL_ERROR)
SAME_NUMBER(OrtArenaAllocator)
SAME_NUMBER(OrtMemTypeDefault)
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE)
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32)
