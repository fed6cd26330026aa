// The part of DLPack's binary interface that is read here: how libraries hand tensors to each other in a PyCapsule.
// Layouts and numbers are those of DLPack 1.x (dmlc.github.io/dlpack); its rules keep them as they are within a major
// version, and the unversioned form for ever.
#pragma once

#include <cstdint>

namespace centermask::python::dlpack {

// Names of capsules that still own their tensor.
inline constexpr const char* kCapsule = "dltensor";                     // holds a ManagedTensor
inline constexpr const char* kVersionedCapsule = "dltensor_versioned";  // holds a ManagedTensorVersioned

enum DeviceKind : std::int32_t { kCpuMemory = 1, kCudaMemory = 2, kCudaHostMemory = 3, kCudaManagedMemory = 13 };
enum ElementKind : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6 };

struct Device {
  std::int32_t kind;
  std::int32_t index;
};

struct Element {
  std::uint8_t kind;
  std::uint8_t bits;
  std::uint16_t lanes;  // more than one: a vector in each element
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  Element element;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null for row-major without gaps
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor* self);
};

struct ManagedTensorVersioned {
  std::uint32_t major, minor;
  void* manager;
  void (*deleter)(ManagedTensorVersioned* self);
  std::uint64_t flags;
  Tensor tensor;
};

}  // namespace centermask::python::dlpack
