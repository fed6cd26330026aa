// Values of a dtype for tests of the CUDA kernels: what a float becomes in it, and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

#include "centermask/tensor_view.h"

namespace cuda_values {

inline void encode(float value, float& to) { to = value; }
inline void encode(float value, __half& to) { to = __float2half(value); }
inline void encode(float value, __nv_bfloat16& to) { to = __float2bfloat16(value); }
inline float decode(float value) { return value; }
inline float decode(__half value) { return __half2float(value); }
inline float decode(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
constexpr centermask::DType dtype_of() {
  return sizeof(T) == 4                   ? centermask::DType::kFloat32
         : std::is_same<T, __half>::value ? centermask::DType::kFloat16
                                          : centermask::DType::kBFloat16;
}

template <class T>
std::vector<T> encoded(const std::vector<float>& values) {
  std::vector<T> to(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) encode(values[i], to[i]);
  return to;
}

template <class T>
std::vector<float> decoded(const std::vector<T>& values) {
  std::vector<float> to(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) to[i] = decode(values[i]);
  return to;
}

// Equal in every bit, so that NaN equals itself and -0 is not +0.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace cuda_values
