// Backward, around the matrix kernels: operands into rows of channels, results into their places, sums.
#pragma once

#include <cstdint>
#include <type_traits>

#include "deform_conv2d/backward_data.cuh"
#include "deform_conv2d/sampling.cuh"

namespace centermask::deform_cuda {

constexpr int kCopyThreads = 256;
constexpr int kCopyTile = 32;

// For each b of `batch`, a matrix of `rows` by `columns` is copied, columns last. Row r is read at
//   (r / split[0])*row_stride[0] + (r % split[0] / split[1])*row_stride[1] + (r % split[1])*row_stride[2]
// and written as row (r % turn)*turn_rows + padded(r / turn), where padded(i) puts runs of `row_run` at a distance of
// `row_padded`. Columns are runs too, of `run`; the gaps up to `padded` are set to zero.
struct RowCopy {
  const void* from;
  void* to;
  int batch, rows, columns;
  std::int64_t batch_stride, row_stride[3], column_stride;
  int split[2];
  int turn, row_run, row_padded;
  std::int64_t turn_rows, batch_rows, to_stride;
  int run, padded;
  int row_tiles, column_tiles;
};

// U: an unsigned integer of the elements' size.
template <class U>
__global__ void __launch_bounds__(kCopyThreads) copy_rows_kernel(const RowCopy a) {
  __shared__ U tile[kCopyTile][kCopyTile + 1];
  // Where the tile's rows begin, and which column is to be copied: -1 is padding.
  __shared__ std::int64_t row_from[kCopyTile], row_to[kCopyTile], column_from[kCopyTile];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  unsigned index = blockIdx.x;
  const int row = static_cast<int>(index % static_cast<unsigned>(a.row_tiles)) * kCopyTile;
  index /= static_cast<unsigned>(a.row_tiles);
  const int column = static_cast<int>(index % static_cast<unsigned>(a.column_tiles)) * kCopyTile;
  const int b = static_cast<int>(index / static_cast<unsigned>(a.column_tiles));
  const bool along_columns = a.column_stride == 1;
  if (warp == 0) {
    const int r = row + lane, turned = r / a.turn, in_split = r % a.split[0];
    row_from[lane] = r / a.split[0] * a.row_stride[0] + in_split / a.split[1] * a.row_stride[1] +
                     in_split % a.split[1] * a.row_stride[2];
    row_to[lane] =
        (r % a.turn * a.turn_rows + std::int64_t{turned / a.row_run} * a.row_padded + turned % a.row_run) * a.to_stride;
  } else if (warp == 1) {
    const int in_run = (column + lane) % a.padded, c = (column + lane) / a.padded * a.run + in_run;
    column_from[lane] = in_run < a.run && c < a.columns ? c : -1;
  }
  __syncthreads();
  const U* from = static_cast<const U*>(a.from) + b * a.batch_stride;
  U* to = static_cast<U*>(a.to) + b * a.batch_rows * a.to_stride + column + lane;
#pragma unroll
  for (int step = 0; step < kCopyTile; step += kCopyThreads / 32) {
    const int r = along_columns ? step + warp : lane, c = along_columns ? lane : step + warp;
    U value = 0;
    if (row + r < a.rows && column_from[c] >= 0) value = from[row_from[r] + column_from[c] * a.column_stride];
    tile[r][c] = value;
  }
  __syncthreads();
  const bool there = column + lane < a.columns / a.run * a.padded;
#pragma unroll
  for (int step = 0; step < kCopyTile; step += kCopyThreads / 32) {
    const int r = step + warp;
    if (row + r < a.rows && there) to[row_to[r]] = tile[r][lane];
  }
}

// ---- grad_x ----
struct FinishPixels {
  const void* from;  // float or 64-bit integers: [batch * pixels][pixel_stride]
  void* to;
  int batch, pixels, channels, run, padded_run;
  std::int64_t pixel_stride;
  const unsigned* maxima;  // not null: fixed point
  int headroom;
  bool channels_last;
  int row_tiles, column_tiles;
};

template <class T>
__global__ void __launch_bounds__(kCopyThreads) finish_pixels_kernel(const FinishPixels a) {
  __shared__ float tile[kCopyTile][kCopyTile + 1];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  unsigned index = blockIdx.x;
  const int row = static_cast<int>(index % static_cast<unsigned>(a.row_tiles)) * kCopyTile;
  index /= static_cast<unsigned>(a.row_tiles);
  const int column = static_cast<int>(index % static_cast<unsigned>(a.column_tiles)) * kCopyTile;
  const std::int64_t n = index / static_cast<unsigned>(a.column_tiles);
  int exponent = 0;
  const bool finite = a.maxima == nullptr || fixed_point_exponent(a.maxima, a.headroom, &exponent);
  const double unit = ldexp(1.0, -exponent);
  const int channel = column + lane;
  const std::int64_t padded = std::int64_t{channel / a.run} * a.padded_run + channel % a.run;
#pragma unroll
  for (int step = 0; step < kCopyTile; step += kCopyThreads / 32) {
    const int i = step + warp, pixel = row + i;
    float value = 0.0f;
    if (pixel < a.pixels && channel < a.channels) {
      const std::int64_t at = (n * a.pixels + pixel) * a.pixel_stride + padded;
      if (a.maxima == nullptr) {
        value = static_cast<const float*>(a.from)[at];
      } else {
        value = static_cast<float>(static_cast<double>(static_cast<const long long*>(a.from)[at]) * unit);
        if (!finite) value = __uint_as_float(0x7fc00000u);
      }
      if (a.channels_last) static_cast<T*>(a.to)[(n * a.pixels + pixel) * a.channels + channel] = from_float<T>(value);
    }
    tile[i][lane] = value;
  }
  if (a.channels_last) return;
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kCopyTile; step += kCopyThreads / 32) {
    const int i = step + warp, pixel = row + lane;
    if (pixel >= a.pixels || column + i >= a.channels) continue;
    static_cast<T*>(a.to)[(n * a.channels + column + i) * a.pixels + pixel] = from_float<T>(tile[lane][i]);
  }
}

// Bits of the largest |value| of a tensor; NaN counts as larger than all. `largest` must have been set to 0.
static __global__ void __launch_bounds__(kCopyThreads)
    maximum_kernel(const Floats values, int n1, int n2, int n3, std::int64_t count, unsigned* largest) {
  __shared__ unsigned block_largest;
  if (threadIdx.x == 0) block_largest = 0;
  __syncthreads();
  unsigned mine = 0;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kCopyThreads + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kCopyThreads) {
    const std::int64_t i3 = i % n3, rest = i / n3, i2 = rest % n2, i1 = rest / n2 % n1, i0 = rest / n2 / n1;
    const float value = read_float(
        values, i0 * values.stride[0] + i1 * values.stride[1] + i2 * values.stride[2] + i3 * values.stride[3]);
    mine = max(mine, __float_as_uint(fabsf(value)));
  }
  atomicMax(&block_largest, mine);
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(largest, block_largest);
}

// ---- grad_weight: the parts, added in order ----
struct FinishWeight {
  const float* parts;  // [splits][groups][column groups][group_out][64]
  void* to;            // [groups][group_out][group_in][taps]
  int splits, groups, group_out, group_in, taps;
  int run, chunks_per_run, column_groups;
};

template <class T>
__global__ void __launch_bounds__(kCopyThreads) finish_weight_kernel(const FinishWeight a) {
  // One value for each thread; neighbours have neighbouring channels, as the parts do.
  const std::int64_t i = std::int64_t{blockIdx.x} * kCopyThreads + threadIdx.x;
  const std::int64_t rows = static_cast<std::int64_t>(a.groups) * a.group_out * a.taps;
  if (i >= rows * a.group_in) return;
  const int channel = static_cast<int>(i % a.group_in), tap = static_cast<int>(i / a.group_in % a.taps);
  const std::int64_t row = i / a.group_in / a.taps, group = row / a.group_out, out = row % a.group_out;
  const int chunk = channel / a.run * a.chunks_per_run + channel % a.run / 64, in_chunk = channel % a.run % 64;
  const std::int64_t part = static_cast<std::int64_t>(a.groups) * a.column_groups * a.group_out * 64;
  const float* from =
      a.parts + ((group * a.column_groups + static_cast<std::int64_t>(chunk) * a.taps + tap) * a.group_out + out) * 64 +
      in_chunk;
  float sum = 0.0f;
#pragma unroll 8
  for (int split = 0; split < a.splits; ++split) sum += from[split * part];
  static_cast<T*>(a.to)[(row * a.group_in + channel) * a.taps + tap] = from_float<T>(sum);
}

// ---- grad_offset and grad_mask, where the channels were split ----
struct FinishPlaces {
  const float* parts;  // [splits][3][offset_groups * taps][positions]
  int splits, positions, out_pixels;
  std::int64_t channels;  // offset_groups * taps
  Floats grad_offset, grad_mask;
};

static __global__ void __launch_bounds__(kCopyThreads) finish_places_kernel(const FinishPlaces a) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kCopyThreads + threadIdx.x, plane = a.channels * a.positions;
  if (i >= plane) return;
  float sum[3] = {};
  for (int split = 0; split < a.splits; ++split) {
#pragma unroll
    for (int k = 0; k < 3; ++k) sum[k] += a.parts[(split * 3 + k) * plane + i];
  }
  const int position = static_cast<int>(i % a.positions), n = position / a.out_pixels;
  const std::int64_t index = n * a.channels + i / a.positions, place = position - n * a.out_pixels;
  if (a.grad_offset.data != nullptr) {
    write_float(a.grad_offset, 2 * index * a.out_pixels + place, sum[0]);
    write_float(a.grad_offset, (2 * index + 1) * a.out_pixels + place, sum[1]);
  }
  if (a.grad_mask.data != nullptr) write_float(a.grad_mask, index * a.out_pixels + place, sum[2]);
}

// ---- grad_bias ----
struct BiasSums {
  const void* grad_output;
  std::int64_t stride[4];
  int positions, out_pixels, out_width, channels;
  int positions_at_once, splits;
  float* parts;  // [splits][channels]
};

// 32 channels and a part of the positions. Lanes go along what lies together in memory.
template <class T>
__global__ void __launch_bounds__(kCopyThreads) bias_parts_kernel(const BiasSums a) {
  constexpr int kWarps = kCopyThreads / 32, kEach = 32 / kWarps;
  __shared__ float sums[32][33];  // of a channel, in parts
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_channel = static_cast<int>(blockIdx.x) / a.splits * 32;
  const int split = static_cast<int>(blockIdx.x) % a.splits;
  const int first = split * a.positions_at_once, end = min(first + a.positions_at_once, a.positions);
  const T* grads = static_cast<const T*>(a.grad_output);
  const auto place_of = [&](int p) {
    const int n = p / a.out_pixels, place = p - n * a.out_pixels, row = place / a.out_width;
    return n * a.stride[0] + row * a.stride[2] + (place - row * a.out_width) * a.stride[3];
  };
  if (a.stride[1] == 1) {
    float sum = 0.0f;
    if (first_channel + lane < a.channels) {
#pragma unroll 4
      for (int p = first + warp; p < end; p += kWarps) sum += to_float(grads[place_of(p) + first_channel + lane]);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) sums[lane][warp * kEach + i] = i == 0 ? sum : 0.0f;
  } else {
    float sum[kEach] = {};
#pragma unroll 2
    for (int p = first + lane; p < end; p += 32) {
      const std::int64_t at = place_of(p);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int channel = first_channel + warp + kWarps * i;
        if (channel < a.channels) sum[i] += to_float(grads[at + channel * a.stride[1]]);
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) sums[warp + kWarps * i][lane] = sum[i];
  }
  __syncthreads();
  if (warp == 0 && first_channel + lane < a.channels) {
    float total = 0.0f;
    for (int i = 0; i < 32; ++i) total += sums[lane][i];
    a.parts[static_cast<std::int64_t>(split) * a.channels + first_channel + lane] = total;
  }
}

// A warp for each channel.
template <class T>
__global__ void __launch_bounds__(kCopyThreads)
    finish_bias_kernel(const float* parts, int splits, int channels, T* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int channel = static_cast<int>(blockIdx.x * (kCopyThreads / 32) + threadIdx.x / 32);
  if (channel >= channels) return;
  float sum = 0.0f;
  for (int split = lane; split < splits; split += 32)
    sum += parts[static_cast<std::int64_t>(split) * channels + channel];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) to[channel] = from_float<T>(sum);
}

}  // namespace centermask::deform_cuda
