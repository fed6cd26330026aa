// Where the taps sample and what they read there, for the CUDA kernels, forward and backward.
#pragma once

#include <cstdint>
#include <type_traits>

#include "centermask/deform_conv2d.h"
#include "cuda/runtime.h"

namespace centermask::deform_cuda {

// A strided 4-d tensor of floats of a type known at run time: offset, mask and their gradients.
struct Floats {
  void* data;
  DType dtype;
  std::int64_t stride[4];
};

inline Floats floats_of(const TensorView& view) {
  Floats floats{};
  if (!view.present()) return floats;
  floats.data = view.data;
  floats.dtype = view.dtype;
  for (int i = 0; i < 4; ++i) floats.stride[i] = view.rank == 4 ? view.stride[i] : 0;
  return floats;
}

__device__ __forceinline__ float read_float(const Floats& from, std::int64_t at) {
  if (from.dtype == DType::kFloat32) return static_cast<const float*>(from.data)[at];
  if (from.dtype == DType::kFloat16) return __half2float(static_cast<const __half*>(from.data)[at]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(from.data)[at]);
}

__device__ __forceinline__ void write_float(const Floats& to, std::int64_t at, float value) {
  if (to.dtype == DType::kFloat32) {
    static_cast<float*>(to.data)[at] = value;
  } else if (to.dtype == DType::kFloat16) {
    static_cast<__half*>(to.data)[at] = __float2half(value);
  } else {
    static_cast<__nv_bfloat16*>(to.data)[at] = __float2bfloat16(value);
  }
}

struct Geometry {
  Floats offset, mask;  // mask.data is null where there is none
  int height, width, out_width, out_pixels;
  int kernel_w, taps;
  int stride[2], padding[2], dilation[2];
};

inline Geometry geometry_of(const DeformConv2dShape& s, const TensorView& offset, const TensorView& mask) {
  Geometry g{};
  g.offset = floats_of(offset);
  g.mask = floats_of(mask);
  g.height = static_cast<int>(s.height), g.width = static_cast<int>(s.width);
  g.out_width = static_cast<int>(s.out_width), g.out_pixels = static_cast<int>(s.out_pixels());
  g.kernel_w = static_cast<int>(s.kernel_w), g.taps = static_cast<int>(s.taps());
  for (int i = 0; i < 2; ++i) {
    g.stride[i] = static_cast<int>(s.params.stride[i]);
    g.padding[i] = static_cast<int>(s.params.padding[i]);
    g.dilation[i] = static_cast<int>(s.params.dilation[i]);
  }
  return g;
}

// One sample. Its corners are pixel (top left), pixel + 1, pixel + width and pixel + width + 1 of its image; bit k of
// `present` says that corner k lies inside the image (with none, `pixel` may be anything).
struct Place {
  int pixel;
  unsigned present;
  float below, right;  // fractions of the way from top to bottom and from left to right
  float mask;
};

// What offset and mask say of one sample.
struct PlaceValues {
  float dy, dx, mask;
};

__device__ __forceinline__ PlaceValues read_place(const Geometry& g, int n, int place, int offset_group, int tap) {
  const int row = place / g.out_width, column = place - row * g.out_width;
  const std::int64_t channel = static_cast<std::int64_t>(offset_group) * g.taps + tap;
  const std::int64_t at = n * g.offset.stride[0] + 2 * channel * g.offset.stride[1] + row * g.offset.stride[2] +
                          column * g.offset.stride[3];
  PlaceValues values = {read_float(g.offset, at), read_float(g.offset, at + g.offset.stride[1]), 1.0f};
  if (g.mask.data != nullptr) {
    values.mask = read_float(
        g.mask, n * g.mask.stride[0] + channel * g.mask.stride[1] + row * g.mask.stride[2] + column * g.mask.stride[3]);
  }
  return values;
}

// Tap `tap` at pixel `place` of an output image. With kAtEdge, samples at y = -1 or x = -1 exactly count as inside:
// their value is 0, but their derivative looks to the right, into the image.
template <bool kAtEdge>
__device__ __forceinline__ Place find_place(const Geometry& g, int place, int tap, const PlaceValues& values) {
  const int row = place / g.out_width, column = place - row * g.out_width;
  const int tap_row = tap / g.kernel_w, tap_column = tap - tap_row * g.kernel_w;
  // Not more than 2^25 pixels from the image, or so far out that the rounding here does not matter.
  const float y = static_cast<float>(static_cast<std::int64_t>(row) * g.stride[0] - g.padding[0] +
                                     static_cast<std::int64_t>(tap_row) * g.dilation[0]) +
                  values.dy;
  const float x = static_cast<float>(static_cast<std::int64_t>(column) * g.stride[1] - g.padding[1] +
                                     static_cast<std::int64_t>(tap_column) * g.dilation[1]) +
                  values.dx;
  Place result;
  result.mask = values.mask;
  const bool high_enough = kAtEdge ? y >= -1.0f && x >= -1.0f : y > -1.0f && x > -1.0f;
  // False for NaN.
  const bool inside = high_enough && y < static_cast<float>(g.height) && x < static_cast<float>(g.width);
  const float floor_y = inside ? floorf(y) : 0.0f, floor_x = inside ? floorf(x) : 0.0f;
  const int top = static_cast<int>(floor_y), left = static_cast<int>(floor_x);
  result.below = inside ? y - floor_y : 0.0f;
  result.right = inside ? x - floor_x : 0.0f;
  result.pixel = top * g.width + left;
  const bool has_top = inside && top >= 0, has_bottom = inside && top + 1 < g.height;
  const bool has_left = left >= 0, has_right = left + 1 < g.width;
  result.present = (has_top && has_left ? 1u : 0u) | (has_top && has_right ? 2u : 0u) |
                   (has_bottom && has_left ? 4u : 0u) | (has_bottom && has_right ? 8u : 0u);
  return result;
}

// Bilinear weights times mask, of the four corners.
__device__ __forceinline__ float4 corner_weights(const Place& place) {
  const float lower = place.below * place.mask, upper = place.mask - lower;
  return make_float4(upper - upper * place.right, upper * place.right, lower - lower * place.right,
                     lower * place.right);
}

// ---- four channels at a time, in float ----
template <class T>
struct Four {  // __half and __nv_bfloat16
  using Bits = uint2;
};
template <>
struct Four<float> {
  using Bits = uint4;
};

template <class T>
__device__ __forceinline__ typename Four<T>::Bits load_four(const T* from) {
  return *reinterpret_cast<const typename Four<T>::Bits*>(from);
}

template <class T>
__device__ __forceinline__ float4 four_floats(const typename Four<T>::Bits& bits) {
  if constexpr (sizeof(T) == 4) {
    return make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                       __uint_as_float(bits.w));
  } else if constexpr (std::is_same_v<T, __half>) {
    const float2 low = __half22float2(reinterpret_cast<const __half2&>(bits.x));
    const float2 high = __half22float2(reinterpret_cast<const __half2&>(bits.y));
    return make_float4(low.x, low.y, high.x, high.y);
  } else {
    return make_float4(__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
                       __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u));
  }
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}

}  // namespace centermask::deform_cuda
