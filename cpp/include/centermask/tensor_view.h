// A non-owning view of a strided tensor: the only way that arrays enter or leave the core.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace centermask {

enum class DType : std::uint8_t { kFloat32, kFloat64, kFloat16, kBFloat16, kUInt8, kUInt32, kInt32, kInt64 };

enum class DeviceType : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  friend bool operator==(const Device& a, const Device& b) { return a.type == b.type && a.index == b.index; }
  friend bool operator!=(const Device& a, const Device& b) { return !(a == b); }
};

inline constexpr int kMaxRank = 6;

// Strides count elements, not bytes, and may be zero or negative. A default-constructed view is "absent":
// that is how an optional argument is left out. A tensor with no elements is present and may have null data.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device{};
  int rank = -1;
  std::int64_t shape[kMaxRank] = {};
  std::int64_t stride[kMaxRank] = {};

  bool present() const { return rank >= 0; }

  std::int64_t size() const {
    if (rank < 0) return 0;
    std::int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }

  // Row-major with no gaps. Dimensions of size 1 may have any stride, and so may all of a tensor with no elements.
  bool contiguous() const {
    if (size() == 0) return rank >= 0;
    std::int64_t expected = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

// A row-major view of memory that the caller owns.
inline TensorView make_view(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device = {}) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.device = device;
  view.rank = static_cast<int>(shape.size());
  int i = 0;
  for (std::int64_t extent : shape) view.shape[i++] = extent;
  std::int64_t stride = 1;
  for (i = view.rank - 1; i >= 0; --i) {
    view.stride[i] = stride;
    stride *= view.shape[i];
  }
  return view;
}

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kFloat64: return "float64";
    case DType::kFloat16: return "float16";
    case DType::kBFloat16: return "bfloat16";
    case DType::kUInt8: return "uint8";
    case DType::kUInt32: return "uint32";
    case DType::kInt32: return "int32";
    case DType::kInt64: return "int64";
  }
  return "unknown";
}

inline std::int64_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat16:
    case DType::kBFloat16: return 2;
    case DType::kUInt8: return 1;
    default: return 4;
  }
}

}  // namespace centermask
