// Tensors on the device with values from the host, in any element type and order of strides, for tests.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "centermask/tensor_view.h"
#include "device_memory.h"

namespace strided {

using namespace centermask;

template <class T>
T convert(double value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}
template <class T>
double read(T value) {
  if constexpr (std::is_same_v<T, __half>) {
    return static_cast<double>(__half2float(value));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return static_cast<double>(__bfloat162float(value));
  } else {
    return static_cast<double>(value);
  }
}
template <class T>
constexpr DType kType = std::is_same_v<T, __half>          ? DType::kFloat16
                        : std::is_same_v<T, __nv_bfloat16> ? DType::kBFloat16
                        : sizeof(T) == 8                   ? DType::kFloat64
                                                           : DType::kFloat32;

enum class Order { kRowMajor, kChannelsLast, kGaps };

// A tensor on the device, with strides of the given order.
template <class T>
struct Strided {
  DeviceBuffer<T> buffer;
  TensorView view;

  static std::int64_t extent(const TensorView& view) {
    std::int64_t size = view.size() > 0 ? 1 : 0;
    for (int i = 0; i < view.rank; ++i) size += (view.shape[i] - 1) * view.stride[i];
    return size > 0 ? size : 0;
  }
  static TensorView layout(std::initializer_list<std::int64_t> shape, Order order) {
    TensorView view = make_view(nullptr, kType<T>, shape, {DeviceType::kCuda, 0});
    if (order == Order::kChannelsLast) {
      const std::int64_t c = view.shape[1], h = view.shape[2], w = view.shape[3];
      view.stride[0] = h * w * c, view.stride[1] = 1, view.stride[2] = w * c, view.stride[3] = c;
    } else if (order == Order::kGaps) {
      std::int64_t stride = 2;
      for (int i = view.rank - 1; i >= 0; --i) {
        view.stride[i] = stride;
        stride = stride * view.shape[i] + 3;
      }
    }
    return view;
  }

  Strided(std::initializer_list<std::int64_t> shape, Order order)
      : buffer(static_cast<std::size_t>(extent(layout(shape, order)))), view(layout(shape, order)) {
    view.data = buffer.data();
  }
  Strided(const std::vector<double>& values, std::initializer_list<std::int64_t> shape, Order order)
      : Strided(shape, order) {
    std::vector<T> image(buffer.size(), convert<T>(99));
    for (std::size_t i = 0; i < values.size(); ++i) image[at(i)] = convert<T>(values[i]);
    buffer.upload(image);
  }

  // Of the value with index i in row-major order.
  std::size_t at(std::size_t i) const {
    std::int64_t rest = static_cast<std::int64_t>(i), place = 0;
    for (int axis = view.rank - 1; axis >= 0; --axis) {
      place += rest % view.shape[axis] * view.stride[axis];
      rest /= view.shape[axis];
    }
    return static_cast<std::size_t>(place);
  }
  std::vector<double> download() const {
    const std::vector<T> image = buffer.download();
    std::vector<double> values(static_cast<std::size_t>(view.size()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = read(image[at(i)]);
    return values;
  }
};

}  // namespace strided
