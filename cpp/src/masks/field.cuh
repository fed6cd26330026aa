// The value of either mask head at one cell. Every sum and product is spelled out (fmaf), so that all kernels that
// evaluate a cell get the same bits: the runs that one kernel counted are the runs that the next one writes.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "masks/geometry.cuh"

namespace centermask::masks::device {

// Everything a kernel knows of the call, passed by value.
struct Problem {
  const void* features;
  const void* params;
  const float* boxes;
  const std::int64_t* labels;  // null where they do not matter
  DType features_type, params_type;
  std::int64_t features_stride[3];
  std::int64_t params_stride[2];
  std::int64_t boxes_stride[2];
  std::int64_t labels_stride;
  std::int64_t channels;
  DeviceAxis x, y;
  double margin;
  float threshold, threshold_rest;  // their sum is the threshold
};

__device__ inline float load(const void* data, DType type, std::int64_t index) {
  if (type == DType::kFloat16) return __half2float(static_cast<const __half*>(data)[index]);
  if (type == DType::kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

// v - threshold; NaN where v is not finite, which then is never inside, nor is anything interpolated from it.
__device__ inline float less_threshold(const Problem& problem, float value) {
  if (!(fabsf(value) <= 3.402823466e38f)) return value - value;
  return __fsub_rn(__fsub_rn(value, problem.threshold), problem.threshold_rest);
}

// NaN stays NaN, so that a broken parameter cannot pass for a mask.
__device__ inline float relu(float x) { return x < 0.0f ? 0.0f : x; }

// ---- kDynamic. In shared memory the first two layers are transposed: [in][out]. ----

inline constexpr int kWeight1 = kHidden * kInputs, kWeight2 = kWeight1 + kHidden * kHidden;
inline constexpr int kBias0 = kWeight2 + kHidden, kBias1 = kBias0 + kHidden, kBias2 = kBias1 + kHidden;

__device__ inline int dynamic_place(int index) {
  if (index < kWeight1) return index % kInputs * kHidden + index / kInputs;
  if (index < kWeight2) return kWeight1 + (index - kWeight1) % kHidden * kHidden + (index - kWeight1) / kHidden;
  return index;
}

template <int kIn>
__device__ inline void layer(const float* weight, const float* bias, const float (&in)[kIn], float (&out)[kHidden]) {
#pragma unroll
  for (int o = 0; o < kHidden; ++o) out[o] = bias[o];
#pragma unroll
  for (int i = 0; i < kIn; ++i) {
#pragma unroll
    for (int o = 0; o < kHidden; ++o) out[o] = fmaf(in[i], weight[i * kHidden + o], out[o]);
  }
#pragma unroll
  for (int o = 0; o < kHidden; ++o) out[o] = relu(out[o]);
}

// `cell` is the place of the cell in the features' first channel.
__device__ inline float dynamic_value(const Problem& problem, const float* params, std::int64_t cell, float rel_x,
                                      float rel_y) {
  float in[kInputs], hidden0[kHidden], hidden1[kHidden];
  in[0] = rel_x;
  in[1] = rel_y;
#pragma unroll
  for (int channel = 0; channel < kMaskFeatures; ++channel) {
    in[channel + 2] = load(problem.features, problem.features_type, cell + channel * problem.features_stride[0]);
  }
  layer(params, params + kBias0, in, hidden0);
  layer(params + kWeight1, params + kBias1, hidden0, hidden1);
  float logit = params[kBias2];
#pragma unroll
  for (int i = 0; i < kHidden; ++i) logit = fmaf(hidden1[i], params[kWeight2 + i], logit);
  return logit;
}

// ---- kShape ----

// e^-x as in field_kernels.cc: to 2 ulp for |x| <= 87, beyond which it stays at e^+-87; NaN stays NaN.
__device__ inline float exp_minus(float x) {
  float y = -x;
  y = y < -87.0f ? -87.0f : y;
  y = y > 87.0f ? 87.0f : y;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded number in the lowest bits
  const float shifted = fmaf(y, 1.44269504f, kRounder);
  const float n = __fsub_rn(shifted, kRounder);
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, y));  // ln 2 in two parts
  float sum = 1.0f / 5040;
  sum = fmaf(sum, r, 1.0f / 720);
  sum = fmaf(sum, r, 1.0f / 120);
  sum = fmaf(sum, r, 1.0f / 24);
  sum = fmaf(sum, r, 1.0f / 6);
  sum = fmaf(sum, r, 0.5f);
  sum = fmaf(sum, r, 1.0f);
  sum = fmaf(sum, r, 1.0f);
  return __fmul_rn(sum, __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23)));
}

__device__ inline float between(float low, float high, float fraction) {
  return fmaf(high, fraction, __fmul_rn(low, __fsub_rn(1.0f, fraction)));
}

// `row` and `column` are the cell's positions on the shape, `params` the place of the instance's first parameter.
__device__ inline float shape_value(const Problem& problem, std::int64_t params, std::int64_t cell,
                                    const CellPosition& row, const CellPosition& column) {
  const auto at = [&](int y, int x) {
    return load(problem.params, problem.params_type, params + (y * kShapeSize + x) * problem.params_stride[1]);
  };
  const int below = row.index + 1 < kShapeSize ? row.index + 1 : row.index;
  const int right = column.index + 1 < kShapeSize ? column.index + 1 : column.index;
  const float logit = between(between(at(row.index, column.index), at(below, column.index), row.value),
                              between(at(row.index, right), at(below, right), row.value), column.value);
  const float saliency = load(problem.features, problem.features_type, cell);
  return __fdividef(1.0f, __fmul_rn(__fadd_rn(1.0f, exp_minus(logit)), __fadd_rn(1.0f, exp_minus(saliency))));
}

}  // namespace centermask::masks::device
