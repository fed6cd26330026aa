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
  std::int64_t vectors;  // in all, 16 bytes each
  std::int32_t group_out, out_blocks, columns;
  std::int32_t segments, segment_channels, chunks, taps, kernel_w;
};

// One vector of the packed weights a thread. For mma a vector has channels that follow each other, for one column of
// the tile, in the order that forward_mma.cuh describes; for SIMT a tile is [channel of the chunk][column].
template <class V, bool kMma, bool kTf32>
__global__ void __launch_bounds__(kPrepareThreads) pack_weights(const PackArguments a) {
  constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(V));
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPrepareThreads + threadIdx.x;
  if (index >= a.vectors) return;
  const int tile_vectors = a.columns * kChunkVectors;
  std::int64_t tile = index / tile_vectors;
  const int inside = static_cast<int>(index - tile * tile_vectors);
  const int tap = static_cast<int>(tile % a.taps);
  tile /= a.taps;
  const int chunk = static_cast<int>(tile % a.chunks);
  tile /= a.chunks;
  const int segment = static_cast<int>(tile % a.segments);
  tile /= a.segments;
  const int out_block = static_cast<int>(tile % a.out_blocks);
  const std::int64_t group = tile / a.out_blocks;

  alignas(16) V values[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    int column, k;
    if (kMma) {
      const int lane = inside % 32, half = inside / 32 % 2;
      column = inside / 64 * 8 + lane / 4;
      k = (half * 4 + lane % 4) * kElements + e;
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
    if constexpr (kTf32) value = bit_copy<float>(cuda::to_tf32(value));
    values[e] = value;
  }
  static_cast<uint4*>(a.to)[index] = *reinterpret_cast<const uint4*>(values);
}

// The parts of K summed in their order, so that the result is the same on every run; then bias and activation. A thread
// has one position and one out channel; neighbouring threads neighbouring channels.
template <class V>
__global__ void __launch_bounds__(kPrepareThreads) sum_splits(const Arguments a, const TileConfig tile) {
  const int columns = a.groups * a.out_blocks * tile.channels;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPrepareThreads + threadIdx.x;
  const std::int64_t row = index / columns;
  const int column = static_cast<int>(index - row * columns);
  if (row >= a.tiles * tile.positions) return;
  const int group = column / (a.out_blocks * tile.channels), out = column - group * a.out_blocks * tile.channels;
  if (out >= a.group_out) return;
  const Position at = locate(a, tile, row / tile.positions, static_cast<int>(row % tile.positions));
  if (!at.inside) return;
  const std::int64_t step = a.tiles * tile.positions * columns;
  float sum = a.partial[index];
  for (int split = 1; split < a.splits; ++split) sum += a.partial[split * step + index];
  store_result<V>(a, at, group * a.group_out + out, sum);
}

}  // namespace
}  // namespace centermask::deform_forward
