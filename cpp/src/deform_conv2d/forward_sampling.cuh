// Where and with what weights the taps sample, and the samples themselves, for the forward kernels. The semantics are
// those of sampling.h.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "deform_conv2d/forward_plan.h"

namespace centermask::deform_forward {
namespace {

// ---- element types: how many to a vector, and how 32 bits of them are read and written ----
struct Float32 {
  using Value = float;
  static constexpr int kElements = 4;
};
struct Float16 {
  using Value = __half;
  static constexpr int kElements = 8;
};
struct BFloat16 {
  using Value = __nv_bfloat16;
  static constexpr int kElements = 8;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class V>
__device__ __forceinline__ V from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <class To, class From>
__device__ __forceinline__ To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same number of bits");
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// values[i] += weight * element i of the vector.
__device__ __forceinline__ void add_scaled(Float32, const uint4& vector, float weight, float (&values)[4]) {
  values[0] = fmaf(weight, bit_copy<float>(vector.x), values[0]);
  values[1] = fmaf(weight, bit_copy<float>(vector.y), values[1]);
  values[2] = fmaf(weight, bit_copy<float>(vector.z), values[2]);
  values[3] = fmaf(weight, bit_copy<float>(vector.w), values[3]);
}
__device__ __forceinline__ float2 unpack(Float16, unsigned bits) { return __half22float2(bit_copy<__half2>(bits)); }
__device__ __forceinline__ float2 unpack(BFloat16, unsigned bits) {
  return make_float2(bit_copy<float>(bits << 16), bit_copy<float>(bits & 0xffff0000u));
}
__device__ __forceinline__ unsigned pack(Float16, float low, float high) {
  return bit_copy<unsigned>(__floats2half2_rn(low, high));
}
__device__ __forceinline__ unsigned pack(BFloat16, float low, float high) {
  return bit_copy<unsigned>(__floats2bfloat162_rn(low, high));
}
template <class Type>
__device__ __forceinline__ void add_scaled(Type type, const uint4& vector, float weight, float (&values)[8]) {
  const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack(type, words[i]);
    values[2 * i] = fmaf(weight, pair.x, values[2 * i]);
    values[2 * i + 1] = fmaf(weight, pair.y, values[2 * i + 1]);
  }
}

// ---- positions ----
struct Position {
  std::int64_t n;
  int y, x;  // of the output
  bool inside;
};

// What the positions of a tile have in common. Divisions: in a loop to be done before it.
struct TileOrigin {
  std::int64_t n;  // the image; in a run of positions, the first of them
  int y, x;
};

__device__ __forceinline__ TileOrigin tile_origin(const Arguments& a, const TileConfig& tile, std::int64_t index) {
  if (a.patch_w == 0) return {index * tile.positions, 0, 0};
  // There are less than 2^31 tiles, and divisions of 64 bits are long.
  const unsigned tiles = static_cast<unsigned>(index), patches_x = static_cast<unsigned>(a.patches_x);
  const unsigned row_of_tiles = tiles / patches_x, image = row_of_tiles / static_cast<unsigned>(a.patches_y);
  return {image, static_cast<int>(row_of_tiles - image * a.patches_y) * a.patch_h,
          static_cast<int>(tiles - row_of_tiles * patches_x) * a.patch_w};
}

// Position p of a tile.
__device__ __forceinline__ Position locate(const Arguments& a, const TileOrigin& origin, int p) {
  Position at;
  if (a.patch_w > 0) {
    at.n = origin.n;
    at.y = origin.y + (p >> a.patch_log2);
    at.x = origin.x + (p & (a.patch_w - 1));
    at.inside = at.y < a.out_height && at.x < a.out_width;
  } else {
    const std::int64_t position = origin.n + p;
    const std::int64_t pixels = static_cast<std::int64_t>(a.out_height) * a.out_width;
    at.n = position / pixels;
    const int pixel = static_cast<int>(position - at.n * pixels);
    at.y = pixel / a.out_width;
    at.x = pixel % a.out_width;
    at.inside = position < a.positions;
  }
  return at;
}
__device__ __forceinline__ Position locate(const Arguments& a, const TileConfig& tile, std::int64_t index, int p) {
  return locate(a, tile_origin(a, tile, index), p);
}

// ---- places ----
// For a tap and a position: the weights (bilinear times mask) of the top left, top right, bottom left and bottom right
// neighbour, 0 for those outside the image; the index, in vectors, of the first of them that is inside, or -1 if the
// whole sample is outside; and whether there is one to the right (1) and below (2). Neighbours outside are read at the
// place of those inside, so that no pixel is read that does not belong to the sample.
struct Places {
  float4* weights;  // [tap][position]
  int2* index;

  __device__ __forceinline__ Places(unsigned char* memory, int table_taps, int positions)
      : weights(reinterpret_cast<float4*>(memory)),
        index(reinterpret_cast<int2*>(memory + table_taps * positions * static_cast<int>(sizeof(float4)))) {}
  __device__ __forceinline__ void put(const Arguments&, int entry, const float4& four, const int2& where) const {
    weights[entry] = four, index[entry] = where;
  }
};

template <class V>
__device__ __forceinline__ float read_place(const Arguments& a, const void* data, std::int64_t at) {
  return a.places_in_float != 0 ? __ldg(static_cast<const float*>(data) + at)
                                : to_float(static_cast<const V*>(data)[at]);
}

// Offset and mask of one tap, `channel` counts taps through the offset groups. For the middle of a kernel, where
// registers are scarce.
template <class V>
__device__ __forceinline__ void read_places(const Arguments& a, const Position& at, const std::int64_t (&channel)[1],
                                            float (&dy)[1], float (&dx)[1], float (&mask)[1]) {
  dy[0] = 0, dx[0] = 0, mask[0] = 1;
  if (!at.inside) return;
  const std::int64_t offset_at = at.n * a.offset_stride[0] + at.y * a.offset_stride[2] + at.x * a.offset_stride[3];
  const std::int64_t mask_at = at.n * a.mask_stride[0] + at.y * a.mask_stride[2] + at.x * a.mask_stride[3];
  dy[0] = read_place<V>(a, a.offset, offset_at + 2 * channel[0] * a.offset_stride[1]);
  dx[0] = read_place<V>(a, a.offset, offset_at + (2 * channel[0] + 1) * a.offset_stride[1]);
  if (a.mask != nullptr) mask[0] = read_place<V>(a, a.mask, mask_at + channel[0] * a.mask_stride[1]);
}

// Of several taps. A condition or a conversion between two loads would have the second wait for the first. So
// everything is read, of whatever tap, and only then looked at: positions outside read those of the first one, and
// where there is no mask, an offset.
template <class P, int kAtOnce>
__device__ __forceinline__ void read_together(const Arguments& a, const Position& at,
                                              const std::int64_t (&channel)[kAtOnce], float (&dy)[kAtOnce],
                                              float (&dx)[kAtOnce], float (&mask)[kAtOnce]) {
  const std::int64_t n = at.inside ? at.n : 0, y = at.inside ? at.y : 0, x = at.inside ? at.x : 0;
  const P* const offset =
      static_cast<const P*>(a.offset) + n * a.offset_stride[0] + y * a.offset_stride[2] + x * a.offset_stride[3];
  const P* const masks = static_cast<const P*>(a.mask != nullptr ? a.mask : a.offset) + n * a.mask_stride[0] +
                         y * a.mask_stride[2] + x * a.mask_stride[3];
  P read[kAtOnce][3];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    read[i][0] = offset[2 * channel[i] * a.offset_stride[1]];
    read[i][1] = offset[(2 * channel[i] + 1) * a.offset_stride[1]];
    read[i][2] = masks[channel[i] * a.mask_stride[1]];
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    dy[i] = to_float(read[i][0]), dx[i] = to_float(read[i][1]);
    mask[i] = a.mask != nullptr ? to_float(read[i][2]) : 1.0f;
  }
}

template <class V, int kAtOnce>
__device__ __forceinline__ void read_places(const Arguments& a, const Position& at,
                                            const std::int64_t (&channel)[kAtOnce], float (&dy)[kAtOnce],
                                            float (&dx)[kAtOnce], float (&mask)[kAtOnce]) {
  if (a.places_in_float != 0) {
    read_together<float>(a, at, channel, dy, dx, mask);
  } else {
    read_together<V>(a, at, channel, dy, dx, mask);
  }
}

__device__ __forceinline__ void find_place(const Arguments& a, const Position& at, float y, float x, float mask,
                                           float4& weights, int2& index) {
  weights = make_float4(0, 0, 0, 0);
  index = make_int2(-1, 0);
  // False for NaN.
  if (!(at.inside && y > -1.0f && x > -1.0f && y < static_cast<float>(a.height) && x < static_cast<float>(a.width))) {
    return;
  }
  const float top = floorf(y), left = floorf(x);
  const float below = y - top, right = x - left;
  const int top_row = static_cast<int>(top), left_column = static_cast<int>(left);
  const bool has_top = top_row >= 0, has_bottom = top_row + 1 < a.height;
  const bool has_left = left_column >= 0, has_right = left_column + 1 < a.width;
  const float lower = below * mask, upper = mask - lower;
  weights.x = has_top && has_left ? upper - upper * right : 0.0f;
  weights.y = has_top && has_right ? upper * right : 0.0f;
  weights.z = has_bottom && has_left ? lower - lower * right : 0.0f;
  weights.w = has_bottom && has_right ? lower * right : 0.0f;
  const std::int64_t row = has_top ? top_row : 0, column = has_left ? left_column : 0;
  index.x = static_cast<int>(at.n * a.x_image + row * a.x_row + column * a.x_pixel);
  index.y = (has_left && has_right ? 1 : 0) | (has_top && has_bottom ? 2 : 0);
}

// ---- the walk along K ----
// Segments, then blocks of table_taps taps, then chunks, then the taps of the block: so that for one chunk of channels
// all taps follow each other, and find the pixels that they share in the L1 cache. The packed weights are in this
// order.
struct Cursor {
  int segment;         // through all groups
  int first_tap, tap;  // `tap` counts from first_tap, the first one in the table
  int chunk;

  __device__ __forceinline__ Cursor(const Arguments& a, int group, std::int64_t step) {
    const std::int64_t per_segment = static_cast<std::int64_t>(a.chunks) * a.taps;
    segment = static_cast<int>(step / per_segment);
    const std::int64_t rest = step - segment * per_segment;
    segment += group * a.segments;
    const std::int64_t per_block = static_cast<std::int64_t>(a.chunks) * a.table_taps;
    const int block = static_cast<int>(rest / per_block);
    first_tap = block * a.table_taps;
    const int inside = static_cast<int>(rest - block * per_block);
    chunk = inside / block_taps(a);
    tap = inside - chunk * block_taps(a);
  }

  // The beginning of a segment.
  __device__ __forceinline__ explicit Cursor(int segment_) : segment(segment_), first_tap(0), tap(0), chunk(0) {}

  __device__ __forceinline__ int block_taps(const Arguments& a) const { return min(a.table_taps, a.taps - first_tap); }

  // Returns whether the table of places has to be filled again.
  __device__ __forceinline__ bool advance(const Arguments& a) {
    const int count = block_taps(a);
    if (++tap < count) return false;
    tap = 0;
    if (++chunk < a.chunks) return false;
    chunk = 0;
    first_tap += count;
    if (first_tap >= a.taps) first_tap = 0, ++segment;
    return true;
  }
};

// What a block does.
struct Work {
  std::int64_t tile;
  int group_block, group, out_block;

  __device__ __forceinline__ Work(const Arguments& a, unsigned block) {
    const int blocks_of_tile = a.groups * a.out_blocks;
    tile = block / blocks_of_tile;
    group_block = static_cast<int>(block - tile * blocks_of_tile);
    group = group_block / a.out_blocks;
    out_block = group_block - group * a.out_blocks;
  }
};

// ---- the table ----
// Fills the table for the taps that follow each other from the cursor's. Followed by a barrier.
// kAtOnce of a thread's taps have their loads under way together. `thread` counts those that take part.
template <class V, int kPositions, int kThreads, int kAtOnce, class Table>
__device__ __forceinline__ void find_places(const Arguments& a, const TileConfig& tile, std::int64_t tile_index,
                                            const Cursor& cursor, const Table& places, unsigned thread = threadIdx.x) {
  static_assert(kThreads % kPositions == 0, "a thread stays at one position");
  constexpr int kStep = kThreads / kPositions;
  const int p = static_cast<int>(thread % kPositions);
  const int offset_group = cursor.segment / a.segments_of_offset_group;
  const int first_tap = cursor.first_tap, count = cursor.block_taps(a);
  const Position at = locate(a, tile, tile_index, p);
  const int y0 = at.y * a.stride[0] - a.padding[0], x0 = at.x * a.stride[1] - a.padding[1];
  for (int tap0 = static_cast<int>(thread / kPositions); tap0 < count; tap0 += kStep * kAtOnce) {
    float dy[kAtOnce], dx[kAtOnce], mask[kAtOnce];
    std::int64_t channel[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      channel[i] = static_cast<std::int64_t>(offset_group) * a.taps + first_tap + min(tap0 + i * kStep, count - 1);
    }
    read_places<V>(a, at, channel, dy, dx, mask);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int tap = tap0 + i * kStep;
      if (tap >= count) break;
      const int row = (first_tap + tap) / a.kernel_w, column = (first_tap + tap) - row * a.kernel_w;
      const float y = static_cast<float>(y0 + row * a.dilation[0]) + dy[i];
      const float x = static_cast<float>(x0 + column * a.dilation[1]) + dx[i];
      float4 weights;
      int2 index;
      find_place(a, at, y, x, mask[i], weights, index);
      places.put(a, tap * kPositions + p, weights, index);
    }
  }
}

// ---- samples ----
// The four neighbours of one vector of channels.
struct Neighbours {
  uint4 pixel[4];
};

// `pixels`: the vector of the first pixel of x, or null where there is none (past the end of the segment).
__device__ __forceinline__ void gather(const Arguments& a, const Places& places, int entry, const uint4* pixels,
                                       Neighbours& n) {
  const int2 index = places.index[entry];
  // Not a branch, so that loads and products can be mixed: samples outside read zeros.
  const bool inside = pixels != nullptr && index.x >= 0;
  const uint4* const top = inside ? pixels + index.x : a.zeros;
  const int right = inside && (index.y & 1) != 0 ? a.x_pixel : 0;
  const uint4* const bottom = top + (inside && (index.y & 2) != 0 ? a.x_row : 0);
  n.pixel[0] = __ldg(top);
  n.pixel[1] = __ldg(top + right);
  n.pixel[2] = __ldg(bottom);
  n.pixel[3] = __ldg(bottom + right);
}

// `weights`: the table's, read late, so that they hold no registers while the loads are under way.
template <class Type>
__device__ __forceinline__ void blend(Type type, const Neighbours& n, const float4& weights,
                                      float (&values)[Type::kElements]) {
#pragma unroll
  for (int i = 0; i < Type::kElements; ++i) values[i] = 0;
  add_scaled(type, n.pixel[0], weights.x, values);
  add_scaled(type, n.pixel[1], weights.y, values);
  add_scaled(type, n.pixel[2], weights.z, values);
  add_scaled(type, n.pixel[3], weights.w, values);
}

// ---- results ----
// `channel` counts through all groups.
template <class V>
__device__ __forceinline__ float bias_of(const Arguments& a, int channel) {
  return to_float(static_cast<const V*>(a.bias)[channel * a.bias_stride]);
}

// Bias, activation and the store of one element.
template <class V>
__device__ __forceinline__ float finish(const Arguments& a, int channel, float value) {
  if (a.bias != nullptr) value += bias_of<V>(a, channel);
  return a.relu != 0 && value < 0 ? 0.0f : value;
}

template <class V>
__device__ __forceinline__ void store_result(const Arguments& a, const Position& at, int channel, float value) {
  static_cast<V*>(a.output)[at.n * a.output_stride[0] + channel * a.output_stride[1] + at.y * a.output_stride[2] +
                            at.x * a.output_stride[3]] = from_float<V>(finish<V>(a, channel, value));
}

}  // namespace
}  // namespace centermask::deform_forward
