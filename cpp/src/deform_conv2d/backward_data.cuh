// Backward, the gradients of x, offset and mask: for 64 positions and a tap, the gradients of the columns (grad_output
// times weight) 64 channels at a time, which stay in registers; from there they are scattered to grad_x and, with the
// four neighbours of each sample, summed over the channels.
#pragma once

#include <cstdint>

#include "cuda/memory.h"
#include "deform_conv2d/backward_multiply.cuh"
#include "deform_conv2d/sampling.cuh"

namespace centermask::deform_cuda {

constexpr int kDataThreads = 128;
constexpr int kDataStages = 3;
// Blocks to a multiprocessor that registers are kept for: as many as fit without spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kDataBlocks = 3;
#else
constexpr int kDataBlocks = 4;
#endif

// A power of two, 2^exponent, that brings every sum of contributions to an element of grad_x into 63 bits.
// maxima: bits of the largest |grad_output|, |weight| and |mask|; headroom: log2 of how many products may add up.
__device__ __forceinline__ bool fixed_point_exponent(const unsigned* maxima, int headroom, int* exponent) {
  int sum = 61 - headroom;
  for (int i = 0; i < 3; ++i) {
    const float value = __uint_as_float(maxima[i]);
    if (!(value <= 3.402823466e38f)) return false;
    int e = 1;  // also where all values are 0, and for the 1 of a mask that is not there
    if (value > 0.0f) frexpf(value, &e);
    sum -= e;
  }
  *exponent = sum < 126 ? sum : 126;
  return sum >= -126;
}

struct DataArguments {
  Geometry geometry;
  int positions;        // of the whole batch
  const void* grads;    // [positions][grad_stride]
  const void* pixels;   // x: [batch * height * width][pixel_stride]
  const void* weights;  // [taps][pixel_stride channels][out_stride], zero from group_out on
  std::int64_t grad_stride, pixel_stride, out_stride;
  int slices;     // of 128 bytes of out channels
  bool resident;  // grad_output's tile stays in shared memory: all channels of an offset group are of one group
  // Channels of an offset group: runs of `run` channels (padded), each of one group, in chunks of 64.
  int offset_groups, runs, run, chunks_per_run;
  int runs_per_group;  // of weight
  int taps_at_once, tap_groups, chunks_at_once, splits;
  void* grad_pixels;       // float or 64-bit integers, as pixels; null if not wanted
  const unsigned* maxima;  // not null: fixed point
  int headroom;
  bool need_places;
  float* places;  // [splits][3][positions * offset_groups * taps], if splits > 1
  Floats grad_offset, grad_mask;
};

struct DataShared {
  std::int64_t at[kTileRows];  // of the top left corner, in elements
  float4 weight[kTileRows];
  float below[kTileRows], right[kTileRows], mask[kTileRows];
  unsigned present[kTileRows];
};

inline std::size_t data_shared_bytes(int slices, bool resident) {
  return sizeof(DataShared) +
         static_cast<std::size_t>(kTileBytes) * (resident ? kDataStages + slices : 2 * kDataStages);
}

__device__ __forceinline__ void write_places(const DataArguments& a, int split, int position, int offset_group, int tap,
                                             float by_y, float by_x, float by_mask) {
  const Geometry& g = a.geometry;
  const std::int64_t channel = static_cast<std::int64_t>(offset_group) * g.taps + tap;
  if (a.splits > 1) {
    const std::int64_t plane = static_cast<std::int64_t>(a.positions) * a.offset_groups * g.taps;
    float* to = a.places + 3 * plane * split + channel * a.positions + position;
    to[0] = by_y, to[plane] = by_x, to[2 * plane] = by_mask;
    return;
  }
  const int n = position / g.out_pixels, place = position - n * g.out_pixels;
  const std::int64_t index = static_cast<std::int64_t>(n) * a.offset_groups * g.taps + channel;
  if (a.grad_offset.data != nullptr) {
    write_float(a.grad_offset, 2 * index * g.out_pixels + place, by_y);
    write_float(a.grad_offset, (2 * index + 1) * g.out_pixels + place, by_x);
  }
  if (a.grad_mask.data != nullptr) write_float(a.grad_mask, index * g.out_pixels + place, by_mask);
}

// What a thread does with its share of the 64 channels from `channel` on: four at a time, for two positions.
template <class T>
struct Scatter {
  std::int64_t at[2];
  float weight[2][4];
  unsigned present[2];
  float dot[2][4];

  __device__ __forceinline__ void read(const DataShared& shared, int row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      at[r] = shared.at[row + 8 * r];
      const float4 w = shared.weight[row + 8 * r];
      weight[r][0] = w.x, weight[r][1] = w.y, weight[r][2] = w.z, weight[r][3] = w.w;
      present[r] = shared.present[row + 8 * r];
#pragma unroll
      for (int k = 0; k < 4; ++k) dot[r][k] = 0.0f;
    }
  }

  // `channel` of x (padded) is the thread's first, `left` how many channels of the run there are from it on. kAll: all
  // of grad_x, grad_offset and grad_mask are wanted, in floating point. kWhole: there are 64 channels.
  template <bool kAll, bool kWhole>
  __device__ __forceinline__ void take(const DataArguments& a, const DataSums& sums, std::int64_t channel, int left,
                                       float scale) {
    // Both fit 32 bits (plan_backward checks it).
    const int next = static_cast<int>(a.pixel_stride), down = a.geometry.width * next;
    constexpr int kAtOnce = sizeof(T) == 2 ? 4 : 2;  // corners whose loads are under way together
#pragma unroll
    for (int i = 0; i < 8; i += kAtOnce) {
      const int r = i / 4;
      const std::int64_t base = at[r] + channel;
      if (kAll || a.need_places) {
        typename Four<T>::Bits bits[kAtOnce][4];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          const int k = i % 4 + n;
          const T* pixel = static_cast<const T*>(a.pixels) + (base + (k % 2 * next + k / 2 * down));
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            bits[n][j] = {};
            if ((present[r] >> k & 1u) != 0 && (kWhole || 16 * j < left)) bits[n][j] = load_four(pixel + 16 * j);
          }
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          float& sum = dot[r][i % 4 + n];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float4 value = four_floats<T>(bits[n][j]);
            sum = fmaf(sums[j][0][2 * r], value.x, sum);
            sum = fmaf(sums[j][0][2 * r + 1], value.y, sum);
            sum = fmaf(sums[j][1][2 * r], value.z, sum);
            sum = fmaf(sums[j][1][2 * r + 1], value.w, sum);
          }
        }
      }
      if (!kAll && a.grad_pixels == nullptr) continue;
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int k = i % 4 + n;
        const float w = weight[r][k];
        if ((present[r] >> k & 1u) == 0 || w == 0.0f) continue;
        const std::int64_t corner = base + (k % 2 * next + k / 2 * down);
        if (kAll || a.maxima == nullptr) {
          float* to = static_cast<float*>(a.grad_pixels) + corner;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (!kWhole && 16 * j >= left) break;
            cuda::add_float4(to + 16 * j, w * sums[j][0][2 * r], w * sums[j][0][2 * r + 1], w * sums[j][1][2 * r],
                             w * sums[j][1][2 * r + 1]);
          }
        } else {
          unsigned long long* to = static_cast<unsigned long long*>(a.grad_pixels) + corner;
#pragma unroll
          for (int e = 0; e < 16; ++e) {
            if (16 * (e / 4) >= left) break;
            const float part = w * sums[e / 4][e / 2 % 2][2 * r + e % 2] * scale;
            atomicAdd(to + 16 * (e / 4) + e % 4, static_cast<unsigned long long>(__float2ll_rn(part)));
          }
        }
      }
    }
  }
};

template <class T, Math kMath, bool kAll>
__global__ void __launch_bounds__(kDataThreads, kAll && sizeof(T) == 2 ? kDataBlocks : 2)
    backward_data_kernel(const DataArguments a) {
  if constexpr (!available<kMath>) {
    __trap();
    return;
  }
  CENTERMASK_DYNAMIC_SHARED(memory);
  DataShared& shared = *reinterpret_cast<DataShared*>(memory);
  unsigned char* weight_tiles = memory + sizeof(DataShared);
  unsigned char* grad_tiles = weight_tiles + kDataStages * kTileBytes;
  constexpr int kElements = static_cast<int>(kRowBytes / sizeof(T));  // of a row of a slice
  const Geometry& g = a.geometry;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;

  // Neighbouring blocks share positions, and with them pixels.
  unsigned index = blockIdx.x;
  const int split = static_cast<int>(index % static_cast<unsigned>(a.splits));
  index /= static_cast<unsigned>(a.splits);
  const int first_tap = static_cast<int>(index % static_cast<unsigned>(a.tap_groups)) * a.taps_at_once;
  index /= static_cast<unsigned>(a.tap_groups);
  const int offset_group = static_cast<int>(index % static_cast<unsigned>(a.offset_groups));
  const int first = static_cast<int>(index / static_cast<unsigned>(a.offset_groups)) * kTileRows;
  const int tap_end = min(first_tap + a.taps_at_once, g.taps);
  const int first_chunk = split * a.chunks_at_once;
  const int chunk_end = min(first_chunk + a.chunks_at_once, a.runs * a.chunks_per_run);
  const int steps = (tap_end - first_tap) * (chunk_end - first_chunk) * a.slices;

  int load_tap = first_tap, load_chunk = first_chunk, load_slice = 0;
  const auto load = [&](int step) {
    const int run = offset_group * a.runs + load_chunk / a.chunks_per_run;
    const int channel = load_chunk % a.chunks_per_run * 64;
    const int unit = thread % 8, element = load_slice * kElements + unit * kUnit<T>;
    const bool unit_there = element < a.out_stride;
    unsigned char* weight_tile = weight_tiles + step % kDataStages * kTileBytes;
    const T* weights = static_cast<const T*>(a.weights) +
                       (load_tap * a.pixel_stride + static_cast<std::int64_t>(run) * a.run + channel) * a.out_stride +
                       element;
#pragma unroll
    for (int i = 0; i < kTileRows / (kDataThreads / 8); ++i) {
      const int row = thread / 8 + i * (kDataThreads / 8);
      const bool there = unit_there && channel + row < a.run;
      cuda::cp_async_16_or_zero(weight_tile + weight_unit(row, unit),
                                there ? static_cast<const void*>(weights + row * a.out_stride) : a.weights, there);
    }
    if (!a.resident || step < a.slices) {
      unsigned char* grad_tile = grad_tiles + (a.resident ? load_slice : step % kDataStages) * kTileBytes;
      const T* grads =
          static_cast<const T*>(a.grads) + first * a.grad_stride + run / a.runs_per_group * a.out_stride + element;
#pragma unroll
      for (int i = 0; i < kTileRows / (kDataThreads / 8); ++i) {
        const int row = thread / 8 + i * (kDataThreads / 8);
        const bool there = unit_there && first + row < a.positions;
        cuda::cp_async_16_or_zero(grad_tile + grad_unit(row, unit),
                                  there ? static_cast<const void*>(grads + row * a.grad_stride) : a.grads, there);
      }
    }
    if (++load_slice == a.slices) {
      load_slice = 0;
      if (++load_chunk == chunk_end) load_chunk = first_chunk, ++load_tap;
    }
  };

  float scale = 0.0f;
  if (a.maxima != nullptr) {
    int exponent = 0;
    if (fixed_point_exponent(a.maxima, a.headroom, &exponent)) scale = ldexpf(1.0f, exponent);
  }

#pragma unroll
  for (int step = 0; step < kDataStages - 1; ++step) {
    if (step < steps) load(step);
    cuda::cp_async_commit();
  }
  DataSums sums = {};
  Scatter<T> scatter;
  const int row = 16 * warp + lane / 4;
  int tap = first_tap, chunk = first_chunk, slice = 0;
  for (int step = 0; step < steps; ++step) {
    cuda::cp_async_wait<kDataStages - 2>();
    __syncthreads();
    if (step + kDataStages - 1 < steps) load(step + kDataStages - 1);
    cuda::cp_async_commit();
    if (chunk == first_chunk && slice == 0 && thread < kTileRows) {
      Place place{};
      const int position = first + thread, n = position / g.out_pixels;
      if (position < a.positions) {
        const int in_image = position - n * g.out_pixels;
        place = find_place<true>(g, in_image, tap, read_place(g, n, in_image, offset_group, tap));
      }
      shared.at[thread] = (static_cast<std::int64_t>(n) * g.height * g.width + place.pixel) * a.pixel_stride;
      shared.weight[thread] = corner_weights(place);
      shared.below[thread] = place.below, shared.right[thread] = place.right, shared.mask[thread] = place.mask;
      shared.present[thread] = place.present;
    }
    multiply_data<T, kMath>(grad_tiles + (a.resident ? slice : step % kDataStages) * kTileBytes,
                            weight_tiles + step % kDataStages * kTileBytes, warp, lane, sums);
    if (++slice < a.slices) continue;
    slice = 0;
    if (chunk == first_chunk) {
      __syncthreads();
      scatter.read(shared, row);
    }
    {
      const int in_run = chunk % a.chunks_per_run * 64 + 4 * (lane % 4);
      const std::int64_t run = offset_group * a.runs + chunk / a.chunks_per_run;
      const std::int64_t channel = run * a.run + in_run;
      if (kAll && a.run - chunk % a.chunks_per_run * 64 >= 64) {
        scatter.template take<kAll, kAll>(a, sums, channel, 64, scale);
      } else {
        scatter.template take<kAll, false>(a, sums, channel, a.run - in_run, scale);
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) sums[i / 8][i / 4 % 2][i % 4] = 0.0f;
    }
    if (++chunk < chunk_end) continue;
    chunk = first_chunk;
    if (a.need_places) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& dot = scatter.dot[i / 4][i % 4];
        dot += __shfl_xor_sync(0xffffffffu, dot, 1);
        dot += __shfl_xor_sync(0xffffffffu, dot, 2);
      }
      // Of the four lanes that have the sums, the first writes one position, the second the other.
      const int r = lane % 4, mine = row + 8 * r;
      if (r < 2 && first + mine < a.positions) {
        const float below = shared.below[mine], right = shared.right[mine], mask = shared.mask[mine];
        const float d0 = r == 0 ? scatter.dot[0][0] : scatter.dot[1][0];
        const float d1 = r == 0 ? scatter.dot[0][1] : scatter.dot[1][1];
        const float d2 = r == 0 ? scatter.dot[0][2] : scatter.dot[1][2];
        const float d3 = r == 0 ? scatter.dot[0][3] : scatter.dot[1][3];
        const float above = 1.0f - below, left = 1.0f - right;
        write_places(a, split, first + mine, offset_group, tap, mask * (left * (d2 - d0) + right * (d3 - d1)),
                     mask * (above * (d1 - d0) + below * (d3 - d2)),
                     above * (left * d0 + right * d1) + below * (left * d2 + right * d3));
      }
    }
    ++tap;
  }
}

}  // namespace centermask::deform_cuda
