// What runs before and after the forward kernel: x brought to channels-last, the weights into the kernel's order, and
// the sum of the parts of K.
#pragma once

#include "cuda/mma.h"
#include "deform_conv2d/forward_sampling.cuh"

namespace centermask::deform_forward {
namespace {

constexpr int kPrepareThreads = 256;
constexpr int kCopyTile = 64;  // pixels and channels

struct CopyArguments {
  const void* from;
  std::int64_t stride[4];
  void* to;
  std::int64_t pixels;  // of an image
  std::int32_t width, pixel_blocks;
  std::int32_t segment_channels, padded_channels;  // of a segment, the latter in `to`
  std::int32_t all_channels;                       // of a pixel in `to`
};

// x with any strides -> [n][pixel][segment][channel, padded with zeros]. Reads along pixels, writes along channels.
template <class V>
__global__ void __launch_bounds__(kPrepareThreads) copy_channels_last(const CopyArguments a) {
  __shared__ V values[kCopyTile][kCopyTile + 2];  // [pixel][channel]
  const std::int64_t n = blockIdx.x / a.pixel_blocks;
  const std::int64_t first_pixel = (blockIdx.x - n * a.pixel_blocks) * kCopyTile;
  const int first_channel = static_cast<int>(blockIdx.y) * kCopyTile;
  for (int i = static_cast<int>(threadIdx.x); i < kCopyTile * kCopyTile; i += kPrepareThreads) {
    const std::int64_t pixel = first_pixel + i % kCopyTile;
    const int padded = first_channel + i / kCopyTile;
    V value = from_float<V>(0.0f);
    const int segment = padded / a.padded_channels, inside = padded - segment * a.padded_channels;
    if (pixel < a.pixels && padded < a.all_channels && inside < a.segment_channels) {
      const std::int64_t y = static_cast<int>(pixel) / a.width, x = static_cast<int>(pixel) % a.width;
      const std::int64_t channel = static_cast<std::int64_t>(segment) * a.segment_channels + inside;
      value =
          static_cast<const V*>(a.from)[n * a.stride[0] + channel * a.stride[1] + y * a.stride[2] + x * a.stride[3]];
    }
    values[i % kCopyTile][i / kCopyTile] = value;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kCopyTile * kCopyTile; i += kPrepareThreads) {
    const std::int64_t pixel = first_pixel + i / kCopyTile;
    const int channel = first_channel + i % kCopyTile;
    if (pixel < a.pixels && channel < a.all_channels) {
      static_cast<V*>(a.to)[(n * a.pixels + pixel) * a.all_channels + channel] = values[i / kCopyTile][i % kCopyTile];
    }
  }
}

struct PackArguments {
  const void* from;
  std::int64_t stride[4];
  void* to;
  std::int64_t vectors, steps;  // vectors of 16 bytes in all; steps of K
  std::int32_t group_out, out_blocks, columns;
  std::int32_t segments, segment_channels, chunks, taps, table_taps, kernel_w;
  std::int32_t tf32;  // round float32 to it
  Kernel kernel;
};

// One vector of the packed weights a thread. For the tensor cores in the order that
// forward_mma.cuh and cuda/wgmma.h describe; for SIMT a tile is
// [channel of the chunk][column].
template <class V>
__global__ void __launch_bounds__(kPrepareThreads) pack_weights(const PackArguments a) {
  constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(V));
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPrepareThreads + threadIdx.x;
  if (index > a.vectors) return;
  if (index == a.vectors) {  // the vector that samples outside the image read
    static_cast<uint4*>(a.to)[index] = make_uint4(0, 0, 0, 0);
    return;
  }
  const int tile_vectors = a.columns * kChunkVectors;
  const std::int64_t tile = index / tile_vectors;
  const int inside = static_cast<int>(index - tile * tile_vectors);
  const int group_block = static_cast<int>(tile / a.steps);
  const int group = group_block / a.out_blocks, out_block = group_block - group * a.out_blocks;
  const Cursor at(a, group, tile - group_block * a.steps);
  const int tap = at.first_tap + at.tap, chunk = at.chunk, segment = at.segment - group * a.segments;

  alignas(16) V values[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    int column, k;
    if (a.kernel == Kernel::kMma) {
      const int lane = inside % 32, instruction = inside / 32 % 2, half = inside / 64 % 2;
      const int word = e / (kElements / 4);  // a register of the left operand
      column = inside / 128 * 16 + word % 2 * 8 + lane / 4;
      k = (half * 4 + lane % 4) * kElements + (instruction * 2 + word / 2) * (kElements / 4) + e % (kElements / 4);
    } else if (a.kernel == Kernel::kWgmma) {
      column = inside / kChunkVectors;
      k = (inside % kChunkVectors ^ column % 8) * kElements + e;
    } else {
      const int element = inside * kElements + e;
      column = element % a.columns;
      k = element / a.columns;
    }
    const int channel = chunk * kChunkVectors * kElements + k;
    const int out = out_block * a.columns + column;
    V value = from_float<V>(0.0f);
    if (channel < a.segment_channels && out < a.group_out) {
      value = static_cast<const V*>(
          a.from)[(group * a.group_out + out) * a.stride[0] +
                  (static_cast<std::int64_t>(segment) * a.segment_channels + channel) * a.stride[1] +
                  tap / a.kernel_w * a.stride[2] + tap % a.kernel_w * a.stride[3]];
    }
    if constexpr (sizeof(V) == 4) value = a.tf32 != 0 ? bit_copy<V>(cuda::to_tf32(value)) : value;
    values[e] = value;
  }
  static_cast<uint4*>(a.to)[index] = *reinterpret_cast<const uint4*>(values);
}

// The parts of K summed in their order, so that the result is the same on every run; then bias and activation. A block
// has kSumRows positions of 32 columns, and turns them round for row-major output.
constexpr int kSumRows = 32;
template <class V>
__global__ void __launch_bounds__(kPrepareThreads) sum_splits(const Arguments a, const TileConfig tile) {
  __shared__ float sums[kSumRows][33];
  const int columns = a.groups * a.out_blocks * tile.channels;
  const std::int64_t rows = a.tiles * tile.positions, first_row = static_cast<std::int64_t>(blockIdx.x) * kSumRows;
  const int first_column = static_cast<int>(blockIdx.y) * 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t step = rows * columns;
#pragma unroll
  for (int r = static_cast<int>(threadIdx.x) / 32; r < kSumRows; r += kPrepareThreads / 32) {
    float sum = 0;
    if (first_row + r < rows) {  // columns are a multiple of 32
      const float* from = a.partial + (first_row + r) * columns + first_column + lane;
      sum = from[0];
      for (int split = 1; split < a.splits; ++split) sum += from[split * step];
    }
    sums[r][lane] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x) / 32; i < kSumRows; i += kPrepareThreads / 32) {
    const int r = a.channels_last_out != 0 ? i : lane, column = first_column + (a.channels_last_out != 0 ? lane : i);
    const int group = column / (a.out_blocks * tile.channels), out = column - group * a.out_blocks * tile.channels;
    const std::int64_t row = first_row + r;
    if (row >= rows || out >= a.group_out) continue;
    const Position at = locate(a, tile, row / tile.positions, static_cast<int>(row % tile.positions));
    if (at.inside) store_result<V>(a, at, group * a.group_out + out, sums[r][column - first_column]);
  }
}

}  // namespace
}  // namespace centermask::deform_forward
