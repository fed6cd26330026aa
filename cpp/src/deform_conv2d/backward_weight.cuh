// Backward, the gradient of weight: grad_output times the samples, summed over positions. A block has 64*kWarpsOut out
// channels and 1, 2 or 4 column groups (64 channels of one tap), and takes a part of the positions, slice by slice:
// while the slice's product is computed, the next slice is sampled straight into shared memory. Each part's sums go to
// the workspace, and are added up in order by another kernel: the same bits on every run.
#pragma once

#include <cstdint>

#include "deform_conv2d/backward_multiply.cuh"
#include "deform_conv2d/sampling.cuh"

namespace centermask::deform_cuda {

constexpr int kWeightThreads = 256;

struct WeightArguments {
  Geometry geometry;
  int positions;
  const void* grads;   // [positions][grad_stride]
  const void* pixels;  // [batch * height * width][pixel_stride]
  std::int64_t grad_stride, pixel_stride, out_stride;
  int groups, group_out;
  int runs, run, chunks_per_run;  // runs of (padded) channels in a group of weight, in chunks of 64
  int run_offset_groups;          // runs in an offset group
  int warps_out;                  // of the 8 warps, along out channels: 1, 2 or 4
  int out_tiles, column_tiles;    // column tiles of a group
  int positions_at_once;          // a multiple of the slice
  float* parts;                   // [splits][groups][column groups][group_out][64]
};

struct SamplePlace {
  std::int64_t at;  // of the top left corner, in elements
  unsigned present;
};

struct ColumnGroup {
  int channel, left;  // of x (padded): the first, and how many there are from it to the end of its run
  int offset_group, tap;
};

template <class T>
struct WeightShared {
  static constexpr int kPlaces = 4 * kSlicePositions<T>;
  SamplePlace places[2][kPlaces];
  float4 weights[2][kPlaces];
  ColumnGroup columns[4];
};

template <class T>
std::size_t weight_shared_bytes(int warps_out) {
  return sizeof(WeightShared<T>) +
         2 * sizeof(T) * kSlicePositions<T> * static_cast<std::size_t>(64 * warps_out + 32 * (8 / warps_out));
}

// The four corners' 16 bytes of channels.
template <class T>
struct Neighbours {
  uint4 bits[4];

  // `next` from pixel to pixel: a row of pixels is within 32 bits (plan_backward checks it).
  __device__ __forceinline__ void read(const T* pixels, const SamplePlace& place, int next, int width) {
    const int step[4] = {0, next, next * width, next * (width + 1)};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      bits[k] = make_uint4(0, 0, 0, 0);
      if ((place.present >> k & 1u) != 0) bits[k] = *reinterpret_cast<const uint4*>(pixels + place.at + step[k]);
    }
  }

  __device__ __forceinline__ uint4 blend(const float4& weights) const {
    const float w[4] = {weights.x, weights.y, weights.z, weights.w};
    float sum[kUnit<T>] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < kUnit<T>; i += 4) {
        const float4 value = load_four_floats<T>(reinterpret_cast<const T*>(&bits[k]) + i);
        sum[i] = fmaf(w[k], value.x, sum[i]);
        sum[i + 1] = fmaf(w[k], value.y, sum[i + 1]);
        sum[i + 2] = fmaf(w[k], value.z, sum[i + 2]);
        sum[i + 3] = fmaf(w[k], value.w, sum[i + 3]);
      }
    }
    uint4 result;
    T* to = reinterpret_cast<T*>(&result);
#pragma unroll
    for (int i = 0; i < kUnit<T>; ++i) to[i] = from_float<T>(sum[i]);
    return result;
  }
};

template <class T, Math kMath>
__global__ void __launch_bounds__(kWeightThreads, sizeof(T) == 2 && kMath == Math::kTensor ? 2 : 1)
    backward_weight_kernel(const WeightArguments a) {
  if constexpr (!available<kMath>) {
    __trap();
    return;
  }
  CENTERMASK_DYNAMIC_SHARED(memory);
  WeightShared<T>& shared = *reinterpret_cast<WeightShared<T>*>(memory);
  constexpr int kSlice = kSlicePositions<T>, kUnits = static_cast<int>(64 * sizeof(T) / 16);
  static_assert(kSlice * kUnits == kWeightThreads, "each thread samples one unit of each column group");
  const Geometry& g = a.geometry;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int column_groups = 4 / a.warps_out, out_rows = 64 * a.warps_out;
  const int grad_bytes = static_cast<int>(out_rows * sizeof(T)), grad_tile = kSlice * grad_bytes;
  constexpr int kSampleTile = static_cast<int>(kSlice * 64 * sizeof(T));  // of a column group
  unsigned char* grad_tiles = memory + sizeof(WeightShared<T>);
  unsigned char* sample_tiles = grad_tiles + 2 * grad_tile;

  unsigned index = blockIdx.x;
  const int column_tile = static_cast<int>(index % static_cast<unsigned>(a.column_tiles));
  index /= static_cast<unsigned>(a.column_tiles);
  const int out_tile = static_cast<int>(index % static_cast<unsigned>(a.out_tiles));
  index /= static_cast<unsigned>(a.out_tiles);
  const int group = static_cast<int>(index % static_cast<unsigned>(a.groups));
  const int split = static_cast<int>(index / static_cast<unsigned>(a.groups));
  const int first_out = out_tile * out_rows;
  const int all_columns = a.runs * a.chunks_per_run * g.taps, first_column = column_tile * column_groups;
  const int columns = min(column_groups, all_columns - first_column);
  const int first = split * a.positions_at_once, end = min(first + a.positions_at_once, a.positions);
  const int slices = (end - first + kSlice - 1) / kSlice;

  const int unit_bits = __ffs(grad_bytes / 16) - 1;
  const auto load_grads = [&](int slice) {
    unsigned char* tile = grad_tiles + slice % 2 * grad_tile;
#pragma unroll 1
    for (int i = thread; i < kSlice << unit_bits; i += kWeightThreads) {
      const int row = i >> unit_bits, unit = i & ((1 << unit_bits) - 1), position = first + slice * kSlice + row;
      const int element = first_out + unit * kUnit<T>;
      const bool there = position < end && element < a.out_stride;
      const T* from = static_cast<const T*>(a.grads) + position * a.grad_stride + group * a.out_stride + element;
      cuda::cp_async_16_or_zero(tile + position_unit<T>(row, grad_bytes, unit),
                                there ? static_cast<const void*>(from) : a.grads, there);
    }
    cuda::cp_async_commit();
  };
  if (thread < columns) {
    const int chunk = (first_column + thread) / g.taps, run = group * a.runs + chunk / a.chunks_per_run;
    const int in_run = chunk % a.chunks_per_run * 64;
    shared.columns[thread] = {run * a.run + in_run, a.run - in_run, run / a.run_offset_groups,
                              (first_column + thread) % g.taps};
  }
  __syncthreads();
  // The places of a slice are found in two steps: while one slice is computed, the offsets of a later one are under
  // way.
  PlaceValues values = {};
  const auto read_places = [&](int slice) {
    const int position = first + slice * kSlice + thread % kSlice, n = position / g.out_pixels;
    if (thread >= columns * kSlice || position >= end) return;
    const ColumnGroup& column = shared.columns[thread / kSlice];
    values = read_place(g, n, position - n * g.out_pixels, column.offset_group, column.tap);
  };
  const auto write_places = [&](int slice) {
    if (thread >= columns * kSlice) return;
    const int position = first + slice * kSlice + thread % kSlice, n = position / g.out_pixels;
    const ColumnGroup& column = shared.columns[thread / kSlice];
    Place place{};
    if (position < end) place = find_place<false>(g, position - n * g.out_pixels, column.tap, values);
    const std::int64_t pixel = static_cast<std::int64_t>(n) * g.height * g.width + place.pixel;
    shared.places[slice % 2][thread] = {pixel * a.pixel_stride + column.channel, place.present};
    shared.weights[slice % 2][thread] = corner_weights(place);
  };
  const int sample_row = thread / kUnits, sample_unit = thread % kUnits;
  const auto read_samples = [&](int slice, int q, Neighbours<T>& neighbours) {
    SamplePlace place = shared.places[slice % 2][q * kSlice + sample_row];
    if (sample_unit * kUnit<T> >= shared.columns[q].left) place.present = 0;
    neighbours.read(static_cast<const T*>(a.pixels) + sample_unit * kUnit<T>, place, static_cast<int>(a.pixel_stride),
                    g.width);
  };
  const auto write_samples = [&](int slice, int q, const Neighbours<T>& neighbours) {
    unsigned char* tile = sample_tiles + (slice % 2 * column_groups + q) * kSampleTile;
    *reinterpret_cast<uint4*>(tile + position_unit<T>(sample_row, 64 * static_cast<int>(sizeof(T)), sample_unit)) =
        neighbours.blend(shared.weights[slice % 2][q * kSlice + sample_row]);
  };

  Neighbours<T> neighbours = {};
  load_grads(0);
  read_places(0);
  write_places(0);
  if (slices > 1) {
    read_places(1);
    write_places(1);
  }
  if (slices > 2) read_places(2);
  __syncthreads();
  for (int q = 0; q < columns; ++q) {
    read_samples(0, q, neighbours);
    write_samples(0, q, neighbours);
  }
  const int warp_out = warp % a.warps_out * 64, warp_column = warp / a.warps_out;  // the latter in halves of a group
  const bool busy = warp_column / 2 < columns && first_out + warp_out < a.group_out;
  WeightSums sums = {};
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    cuda::cp_async_wait<0>();
    __syncthreads();
    const bool more = slice + 1 < slices;
    if (more) {
      load_grads(slice + 1);
      read_samples(slice + 1, 0, neighbours);
    }
    if (busy) {
      multiply_weight<T, kMath>(grad_tiles + slice % 2 * grad_tile, grad_bytes, warp_out,
                                sample_tiles + (slice % 2 * column_groups + warp_column / 2) * kSampleTile,
                                warp_column % 2 * 32, lane, sums);
    }
    if (!more) break;
    write_samples(slice + 1, 0, neighbours);
    if (slice + 2 < slices) write_places(slice + 2);
    if (slice + 3 < slices) read_places(slice + 3);
#pragma unroll 1
    for (int q = 1; q < columns; ++q) {
      read_samples(slice + 1, q, neighbours);
      write_samples(slice + 1, q, neighbours);
    }
  }
  if (!busy) return;
  float* part =
      a.parts + ((static_cast<std::int64_t>(split) * a.groups + group) * all_columns + first_column + warp_column / 2) *
                    a.group_out * 64;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int out = first_out + warp_out + 16 * i + 8 * r + lane / 4;
      if (out >= a.group_out) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        *reinterpret_cast<float2*>(part + out * std::int64_t{64} + warp_column % 2 * 32 + 8 * j + 2 * (lane % 4)) =
            make_float2(sums[i][j][2 * r], sums[i][j][2 * r + 1]);
      }
    }
  }
}

}  // namespace centermask::deform_cuda
