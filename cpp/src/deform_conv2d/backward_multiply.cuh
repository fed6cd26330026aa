// The matrix products of the backward kernels: what a warp does with one slice of operands in shared memory.
//
// A slice holds kUnits 16-byte units along one direction; units are permuted within rows (`swizzled`), so that neither
// filling nor reading meets the same banks twice. The SIMT kernels keep sums exactly where the tensor cores' fragments
// have them, so that all that follows is the same code.
#pragma once

#include <cstdint>

#include "cuda/mma.h"
#include "deform_conv2d/sampling.cuh"

namespace centermask::deform_cuda {

// kTensor with float: TF32. kFloat32: all of float's precision on the tensor cores; each number is the sum of two of
// TF32, the product the sum of three (that of the two small parts is below float's last bit). Tensor cores cut off what
// does not fit when they add to a large sum; so their sums are kept short, and added up by ordinary additions.
enum class Math { kSimt, kTensor, kFloat32 };

// Kernels only trap on cards that cannot run them; the host does not launch them there.
template <Math kMath>
constexpr bool available = kMath == Math::kSimt || CENTERMASK_HAVE_MMA != 0;

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<__half>(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  cuda::mma_m16n8k16_f16(c, a, b);
}
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                                   const std::uint32_t (&b)[2]) {
  cuda::mma_m16n8k16_bf16(c, a, b);
}
template <>
__device__ __forceinline__ void mma<float>(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  cuda::mma_m16n8k8_tf32(c, a, b);
}

template <class T>
__device__ __forceinline__ void round_operand(std::uint32_t& bits) {
  if constexpr (sizeof(T) == 4) bits = cuda::to_tf32(__uint_as_float(bits));
}

// An operand in two parts.
__device__ __forceinline__ void divide(std::uint32_t bits, std::uint32_t& high, std::uint32_t& low) {
  high = cuda::to_tf32(__uint_as_float(bits));
  low = __float_as_uint(__uint_as_float(bits) - __uint_as_float(high));
}

__device__ __forceinline__ void mma_float32(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                            std::uint32_t b1) {
  std::uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) divide(a[i], a_high[i], a_low[i]);
  divide(b0, b_high[0], b_low[0]);
  divide(b1, b_high[1], b_low[1]);
  mma<float>(c, a_low, b_high);
  mma<float>(c, a_high, b_low);
  mma<float>(c, a_high, b_high);
}

template <class T>
__device__ __forceinline__ float4 load_four_floats(const T* from) {
  return four_floats<T>(load_four(from));
}

// ---- data kernel: sums[position][channel] += grad[position][out] * weight[channel][out] ----
// Both operands are rows of 128 bytes of out channels: 64 positions (16 of each warp) and 64 channels.
constexpr int kRowBytes = 128;
constexpr int kTileRows = 64;
constexpr int kTileBytes = kTileRows * kRowBytes;

// Of lane 4*g + t, sums[j][h][2*r + e] belongs to row g + 8*r and to channel
// 16*j + 4*t + 2*h + e. So each lane has four neighbouring channels.
using DataSums = float[4][2][4];

__device__ __forceinline__ int grad_unit(int row, int unit) { return row * kRowBytes + 16 * (unit ^ (row & 7)); }
// The rows that one ldmatrix reads are 0, 1, 4, 5, 8, 9, 12, 13 (or 2, 3, ...).
__device__ __forceinline__ int weight_unit(int row, int unit) {
  return row * kRowBytes + 16 * (unit ^ ((row & 1) | (row >> 1 & 6)));
}

template <class T, Math kMath>
__device__ __forceinline__ void multiply_data(const unsigned char* grads, const unsigned char* weights, int warp,
                                              int lane, DataSums& sums) {
  if constexpr (kMath == Math::kTensor) {
    const int matrix = lane / 8, r = lane % 8;
    const int row = 16 * warp + r + 8 * (matrix % 2);
    const int channel = 4 * (r / 2) + r % 2 + 2 * (matrix / 2);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      std::uint32_t a[4];
      cuda::ldmatrix_x4(a, grads + grad_unit(row, 2 * k + matrix / 2));
#pragma unroll
      for (int i = 0; i < 4; ++i) round_operand<T>(a[i]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t b[4];
        cuda::ldmatrix_x4(b, weights + weight_unit(16 * j + channel, 2 * k + matrix % 2));
#pragma unroll
        for (int i = 0; i < 4; ++i) round_operand<T>(b[i]);
        const std::uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        mma<T>(sums[j][0], a, b0);
        mma<T>(sums[j][1], a, b1);
      }
    }
  } else if constexpr (kMath == Math::kFloat32) {
    const int matrix = lane / 8, r = lane % 8;
    const int row = 16 * warp + r + 8 * (matrix % 2);
    const int channel = 4 * (r / 2) + r % 2 + 2 * (matrix / 2);
    std::uint32_t a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) cuda::ldmatrix_x4(a[k], grads + grad_unit(row, 2 * k + matrix / 2));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float part[2][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        std::uint32_t b[4];
        cuda::ldmatrix_x4(b, weights + weight_unit(16 * j + channel, 2 * k + matrix % 2));
        mma_float32(part[0], a[k], b[0], b[1]);
        mma_float32(part[1], a[k], b[2], b[3]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[j][i / 4][i % 4] += part[i / 4][i % 4];
    }
  } else {
    constexpr int kParts = static_cast<int>(4 / sizeof(T));  // fours in a unit
    const int g = lane / 4, t = lane % 4;
    for (int unit = 0; unit < 8; ++unit) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float4 a[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          a[r] = load_four_floats<T>(reinterpret_cast<const T*>(grads + grad_unit(16 * warp + g + 8 * r, unit)) +
                                     4 * part);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float4 b = load_four_floats<T>(
                reinterpret_cast<const T*>(weights + weight_unit(16 * j + 4 * t + i, unit)) + 4 * part);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float& sum = sums[j][i / 2][2 * r + i % 2];
              sum = fmaf(a[r].x, b.x, sum);
              sum = fmaf(a[r].y, b.y, sum);
              sum = fmaf(a[r].z, b.z, sum);
              sum = fmaf(a[r].w, b.w, sum);
            }
          }
        }
      }
    }
  }
}

// ---- weight kernel: sums[out][column] += grad[position][out] * sample[position][column] ----
// A slice is of 32 positions (16 in float); a warp takes 64 out channels by 32 columns. sums[i][j][2*r + e] belongs to
// out channel 16*i + 8*r + g and to column 8*j + 2*t + e.
using WeightSums = float[4][4][4];

template <class T>
constexpr int kSlicePositions = static_cast<int>(64 / sizeof(T));
template <class T>
constexpr int kUnit = static_cast<int>(16 / sizeof(T));  // elements

template <class T>
__device__ __forceinline__ int position_unit(int position, int row_bytes, int unit) {
  return position * row_bytes + 16 * (unit ^ (sizeof(T) == 4 ? (position & 3) << 1 : position & 7));
}

template <class T>
__device__ __forceinline__ const T* position_element(const unsigned char* rows, int row_bytes, int position,
                                                     int element) {
  return reinterpret_cast<const T*>(rows + position_unit<T>(position, row_bytes, element / kUnit<T>)) +
         element % kUnit<T>;
}

template <class T, Math kMath>
__device__ __forceinline__ void multiply_weight(const unsigned char* grads, int grad_bytes, int first_out,
                                                const unsigned char* samples, int first_column, int lane,
                                                WeightSums& sums) {
  constexpr int kSampleBytes = static_cast<int>(64 * sizeof(T));
  const int g = lane / 4, t = lane % 4;
  if constexpr (kMath == Math::kTensor && sizeof(T) == 2) {
    const int matrix = lane / 8, r = lane % 8;
#pragma unroll
    for (int k = 0; k < kSlicePositions<T>; k += 16) {
      std::uint32_t b[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        cuda::ldmatrix_x4_trans(b[j], samples + position_unit<T>(k + r + 8 * (matrix % 2), kSampleBytes,
                                                                 first_column / 8 + 2 * j + matrix / 2));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t a[4];
        cuda::ldmatrix_x4_trans(
            a, grads + position_unit<T>(k + r + 8 * (matrix / 2), grad_bytes, first_out / 8 + 2 * i + matrix % 2));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::uint32_t pair[2] = {b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]};
          mma<T>(sums[i][j], a, pair);
        }
      }
    }
  } else if constexpr (kMath == Math::kTensor) {
    const auto operand = [](const unsigned char* rows, int row_bytes, int position, int element) {
      return cuda::to_tf32(*position_element<T>(rows, row_bytes, position, element));
    };
#pragma unroll 1
    for (int k = 0; k < kSlicePositions<T>; k += 8) {
      std::uint32_t b[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) b[j][h] = operand(samples, kSampleBytes, k + t + 4 * h, first_column + 8 * j + g);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t a[4];
#pragma unroll
        for (int h = 0; h < 4; ++h) {
          a[h] = operand(grads, grad_bytes, k + t + 4 * (h / 2), first_out + 16 * i + 8 * (h % 2) + g);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) mma<T>(sums[i][j], a, b[j]);
      }
    }
  } else if constexpr (kMath == Math::kFloat32) {
    const auto operand = [](const unsigned char* rows, int row_bytes, int position, int element) {
      return __float_as_uint(*position_element<T>(rows, row_bytes, position, element));
    };
#pragma unroll 1
    for (int k = 0; k < kSlicePositions<T>; k += 8) {
      std::uint32_t b[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) b[j][h] = operand(samples, kSampleBytes, k + t + 4 * h, first_column + 8 * j + g);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t a[4];
#pragma unroll
        for (int h = 0; h < 4; ++h) {
          a[h] = operand(grads, grad_bytes, k + t + 4 * (h / 2), first_out + 16 * i + 8 * (h % 2) + g);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float part[4] = {};
          mma_float32(part, a, b[j][0], b[j][1]);
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[i][j][e] += part[e];
        }
      }
    }
  } else {
    for (int k = 0; k < kSlicePositions<T>; ++k) {
      float b[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        b[j] = to_float(*position_element<T>(samples, kSampleBytes, k, first_column + 8 * (j / 2) + 2 * t + j % 2));
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float a = to_float(*position_element<T>(grads, grad_bytes, k, first_out + 8 * i + g));
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float& sum = sums[i / 2][j / 2][2 * (i % 2) + j % 2];
          sum = fmaf(a, b[j], sum);
        }
      }
    }
  }
}

}  // namespace centermask::deform_cuda
