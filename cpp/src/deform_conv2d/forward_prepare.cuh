// What runs before and after the forward kernel: x brought to channels-last, the weights into the kernel's order, and
// the sum of the parts of K.
#pragma once

#include "cuda/pipeline.h"
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

// The same where whole vectors can be read along pixels and written along channels: planes without gaps, segments
// without padding.
template <class V>
__global__ void __launch_bounds__(kPrepareThreads) copy_planes(const CopyArguments a) {
  constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(V)), kVectors = kCopyTile / kElements;
  constexpr int kPitch =
      kCopyTile + 4 / static_cast<int>(sizeof(V));      // one word more: other banks for the next channel
  alignas(16) __shared__ V values[kCopyTile * kPitch];  // [channel][pixel]
  const std::int64_t n = blockIdx.x / a.pixel_blocks;
  const std::int64_t first_pixel = (blockIdx.x - n * a.pixel_blocks) * kCopyTile;
  const int first_channel = static_cast<int>(blockIdx.y) * kCopyTile;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kCopyTile * kVectors; i += kPrepareThreads) {
    const int channel = i / kVectors, pixel = i % kVectors * kElements;
    uint4 vector = make_uint4(0, 0, 0, 0);
    if (first_channel + channel < a.all_channels && first_pixel + pixel < a.pixels) {
      vector = __ldg(reinterpret_cast<const uint4*>(static_cast<const V*>(a.from) + n * a.stride[0] +
                                                    (first_channel + channel) * a.stride[1] + first_pixel + pixel));
    }
    unsigned* const to = reinterpret_cast<unsigned*>(values + channel * kPitch + pixel);
    to[0] = vector.x, to[1] = vector.y, to[2] = vector.z, to[3] = vector.w;
  }
  __syncthreads();
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kCopyTile * kVectors; i += kPrepareThreads) {
    const int pixel = i / kVectors, channel = i % kVectors * kElements;
    if (first_channel + channel >= a.all_channels || first_pixel + pixel >= a.pixels) continue;
    alignas(16) V vector[kElements];
#pragma unroll
    for (int e = 0; e < kElements; ++e) vector[e] = values[(channel + e) * kPitch + pixel];
    *reinterpret_cast<uint4*>(static_cast<V*>(a.to) + (n * a.pixels + first_pixel + pixel) * a.all_channels +
                              first_channel + channel) = *reinterpret_cast<const uint4*>(vector);
  }
}

struct PackArguments {
  const void* from;
  std::int64_t stride[4];
  void* to;
  std::int64_t zeros, zero_vectors;  // where zeros are to be, counted in vectors: what samples outside the image read
  std::int64_t steps;                // of K
  std::int32_t group_out, out_blocks, columns;
  std::int32_t segments, segment_channels, chunks, taps, table_taps, kernel_w;
  std::int32_t channels_inside;  // in memory the weight's channels follow each other, not its taps
  std::int32_t taps_at_once;
  std::int32_t whole_rows;  // an out channel's weights follow each other, in vectors, and all taps fit
  std::int32_t tf32;        // round float32 to it
  std::int32_t parts;       // 2: and the rest after it
  Kernel kernel;
};

// A block packs 16 out channels of a tile for one chunk of channels and some or all taps, through shared memory:
// neighbours in the weight are taps, or channels, while a packed vector has channels of one tap, in the order that
// forward_mma.cuh and cuda/wgmma.h describe. For SIMT a tile is [channel of the chunk][column].
constexpr int kPackRows = 16, kPackTaps = 9;  // at most so many taps at once
template <class V>
__global__ void __launch_bounds__(kPrepareThreads) pack_weights(const PackArguments a) {
  constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(V)), kDepth = kChunkVectors * kElements;
  constexpr int kPitch = kDepth * kPackTaps + 4 / static_cast<int>(sizeof(V));
  constexpr int kVectors = kPackRows * kChunkVectors;
  alignas(16) __shared__ V values[kPackRows * kPitch];  // [row][channel][tap]
  const int thread = static_cast<int>(threadIdx.x);
  cuda::let_next_kernel_begin();  // it has work to do before it needs the weights
  if (blockIdx.x == 0 && blockIdx.y == 0) {
    for (std::int64_t i = thread; i < a.zero_vectors; i += kPrepareThreads) {
      static_cast<uint4*>(a.to)[a.zeros + i] = make_uint4(0, 0, 0, 0);
    }
  }

  const int row_blocks = a.columns / kPackRows, all_chunks = a.segments * a.chunks;
  std::int64_t block = blockIdx.x;
  const int row_block = static_cast<int>(block % row_blocks);
  block /= row_blocks;
  const int chunk = static_cast<int>(block % all_chunks) % a.chunks;
  const int segment = static_cast<int>(block % all_chunks) / a.chunks;
  const std::int64_t group_block = block / all_chunks;
  const std::int64_t group = group_block / a.out_blocks;
  const int first_out = static_cast<int>(group_block - group * a.out_blocks) * a.columns + row_block * kPackRows;

  for (int first_tap = static_cast<int>(blockIdx.y) * a.taps_at_once; first_tap < a.taps;
       first_tap += static_cast<int>(gridDim.y) * a.taps_at_once) {
    const int taps = min(a.taps_at_once, a.taps - first_tap);
    __syncthreads();
    const int row_vectors = kChunkVectors * a.taps;
#pragma unroll 4
    for (int i = a.whole_rows != 0 ? thread : kPackRows * row_vectors; i < kPackRows * row_vectors;
         i += kPrepareThreads) {
      const int row = i / row_vectors, vector = i - row * row_vectors, out = first_out + row;
      const int inside = (chunk * kDepth * a.taps) + vector * kElements;  // of the segment
      uint4 words = make_uint4(0, 0, 0, 0);
      if (inside < a.segment_channels * a.taps && out < a.group_out) {
        words =
            *reinterpret_cast<const uint4*>(static_cast<const V*>(a.from) + (group * a.group_out + out) * a.stride[0] +
                                            static_cast<std::int64_t>(segment) * a.segment_channels * a.taps + inside);
      }
      unsigned* const to = reinterpret_cast<unsigned*>(values + row * kPitch) + vector * 4;
      to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
    }
#pragma unroll 4
    for (int i = a.whole_rows != 0 ? kPackRows * kDepth * taps : thread; i < kPackRows * kDepth * taps;
         i += kPrepareThreads) {
      const int row = i / (kDepth * taps), inside = i - row * (kDepth * taps);
      const int k = a.channels_inside != 0 ? inside % kDepth : inside / taps;
      const int tap = a.channels_inside != 0 ? inside / kDepth : inside - k * taps;
      const int channel = chunk * kDepth + k, out = first_out + row;
      V value = from_float<V>(0.0f);
      if (channel < a.segment_channels && out < a.group_out) {
        const std::int64_t in_group = static_cast<std::int64_t>(segment) * a.segment_channels + channel;
        const int y = (first_tap + tap) / a.kernel_w, x = (first_tap + tap) - y * a.kernel_w;
        value = static_cast<const V*>(a.from)[(group * a.group_out + out) * a.stride[0] + in_group * a.stride[1] +
                                              y * a.stride[2] + x * a.stride[3]];
      }
      values[row * kPitch + k * taps + tap] = value;
    }
    __syncthreads();
    const int held = a.whole_rows != 0 ? a.taps : taps, first_held = a.whole_rows != 0 ? first_tap : 0;
    for (int i = thread; i < kVectors * taps; i += kPrepareThreads) {
      const int tap = i / kVectors, inside = i % kVectors;
      alignas(16) V vector[kElements], rest[kElements];
      std::int64_t to = row_block * kVectors + inside;
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        int row, k;
        if (a.kernel == Kernel::kMma) {
          const int lane = inside % 32, instruction = inside / 32 % 2, half = inside / 64;
          const int word = e / (kElements / 4);  // a register of the left operand
          row = word % 2 * 8 + lane / 4;
          k = (half * 4 + lane % 4) * kElements + (instruction * 2 + word / 2) * (kElements / 4) + e % (kElements / 4);
        } else if (a.kernel == Kernel::kWgmma || a.kernel == Kernel::kRing) {
          row = inside / kChunkVectors;
          k = (inside % kChunkVectors ^ row % 8) * kElements + e;
        } else {
          constexpr int kOfRow = kPackRows / kElements;
          k = inside / kOfRow;
          row = inside % kOfRow * kElements + e;
          to = (k * a.columns + row_block * kPackRows) / kElements + inside % kOfRow;
        }
        V value = values[row * kPitch + k * held + first_held + tap];
        if constexpr (sizeof(V) == 4) {
          const V all = value;
          value = a.tf32 != 0 ? bit_copy<V>(cuda::to_tf32(value)) : value;
          rest[e] = bit_copy<V>(cuda::to_tf32(all - value));
        }
        vector[e] = value;
      }
      // The step of K: segments, blocks of table_taps taps, chunks, taps (Cursor, forward_sampling.cuh).
      const int all = first_tap + tap, block_tap = all / a.table_taps * a.table_taps;
      const std::int64_t step = static_cast<std::int64_t>(segment) * a.chunks * a.taps +
                                static_cast<std::int64_t>(block_tap) * a.chunks +
                                chunk * min(a.table_taps, a.taps - block_tap) + (all - block_tap);
      uint4* const of_step =
          static_cast<uint4*>(a.to) + (group_block * a.steps + step) * (a.parts * a.columns * kChunkVectors);
      of_step[to] = *reinterpret_cast<const uint4*>(vector);
      if constexpr (sizeof(V) == 4) {
        if (a.parts > 1) of_step[a.columns * kChunkVectors + to] = *reinterpret_cast<const uint4*>(rest);
      }
    }
  }
}

// The same for forward_ring.cuh and 3x3 kernels whose weights can be read in whole vectors, which nearly all are: a
// thread turns kElements channels of 9 taps, 9 vectors that follow each other in memory, in its registers; or, with
// kChannelsInside, moves those of a weight whose channels follow each other, tap after tap. A block has 4 out channels
// and one chunk: grid [out channels / 4][chunks][groups and blocks of out channels]. Writes 512 bytes at a time, and
// reads whole sectors.
constexpr int kTurnThreads = 32, kTurnTaps = 9, kTurnRows = kTurnThreads / kChunkVectors;
template <class V, bool kChannelsInside>
__global__ void __launch_bounds__(kTurnThreads) turn_weights(const PackArguments a) {
  constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(V));
  const int thread = static_cast<int>(threadIdx.x), chunk = static_cast<int>(blockIdx.y);
  cuda::wait_for_kernel_before();
  cuda::let_next_kernel_begin();
  const int group = static_cast<int>(blockIdx.z) / a.out_blocks;
  const int row = static_cast<int>(blockIdx.x) * kTurnRows + thread / kChunkVectors;  // of the packed tile
  const int place = thread % kChunkVectors;                                           // in the row
  const int out = (static_cast<int>(blockIdx.z) - group * a.out_blocks) * a.columns + row;
  const int channel = (chunk * kChunkVectors + (place ^ row % 8)) * kElements;
  const bool there = out < a.group_out && channel < a.segment_channels;
  const V* const from = static_cast<const V*>(a.from) +
                        (static_cast<std::int64_t>(group) * a.group_out + out) * a.stride[0] + channel * a.stride[1];
  uint4* to =
      static_cast<uint4*>(a.to) +
      (static_cast<std::int64_t>(blockIdx.z) * a.steps + chunk * kTurnTaps) * (a.parts * a.columns * kChunkVectors) +
      row * kChunkVectors + place;
  alignas(16) V values[kTurnTaps * kElements];  // as in memory: [channel][tap], or [tap][channel]
#pragma unroll
  for (int i = 0; i < kTurnTaps; ++i) {
    reinterpret_cast<uint4*>(values)[i] =
        there ? __ldg(reinterpret_cast<const uint4*>(from + i * (kChannelsInside ? a.stride[3] : kElements)))
              : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int tap = 0; tap < kTurnTaps; ++tap) {
    alignas(16) V vector[kElements], rest[kElements];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const V value = values[kChannelsInside ? tap * kElements + e : e * kTurnTaps + tap];
      vector[e] = value;
      if constexpr (sizeof(V) == 4) {
        vector[e] = bit_copy<V>(cuda::to_tf32(value));
        rest[e] = bit_copy<V>(cuda::to_tf32(value - vector[e]));
      }
    }
    *to = *reinterpret_cast<const uint4*>(vector);
    if constexpr (sizeof(V) == 4) {
      if (a.parts > 1) to[a.columns * kChunkVectors] = *reinterpret_cast<const uint4*>(rest);
    }
    to += a.parts * a.columns * kChunkVectors;
  }
  if (blockIdx.y == 0 && blockIdx.z == 0) {
#pragma unroll 1
    for (std::int64_t i = blockIdx.x * kTurnThreads + threadIdx.x; i < a.zero_vectors; i += gridDim.x * kTurnThreads) {
      static_cast<uint4*>(a.to)[a.zeros + i] = make_uint4(0, 0, 0, 0);
    }
  }
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
  cuda::wait_for_kernel_before();
#pragma unroll
  for (int r = static_cast<int>(threadIdx.x) / 32; r < kSumRows; r += kPrepareThreads / 32) {
    float sum = 0;
    if (first_row + r < rows) {  // columns are a multiple of 32
      const float* from = a.partial + (first_row + r) * columns + first_column + lane;
      sum = from[0];
#pragma unroll 4
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
