// The way of a tile's sums from the registers of the tensor core kernels to the output, or to the workspace.
#pragma once

#include "cuda/mma.h"
#include "deform_conv2d/forward_sampling.cuh"

namespace centermask::deform_forward {
namespace {

// A part of K's sums into the workspace. Lane 4*g + t holds channels g and g+8 and positions 2t and 2t+1 of each 16 x 8
// tile. A warp's tiles follow each other, or, if kSpread, those of other warps lie between them.
template <int kM, int kN, int kWarpsM, int kWarpsN, bool kSpread = false>
__device__ __forceinline__ void write_partial(const Arguments& a, const Work& work, int warp_m, int warp_n,
                                              const float (&sums)[kN / kWarpsN / 16][kM / kWarpsM / 8][4]) {
  constexpr int kTilesM = kM / kWarpsM / 8, kTilesN = kN / kWarpsN / 16;
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = (warp_m * kTilesM + m) * 8 + lane % 4 * 2 + j;
      float* const to =
          a.partial +
          ((static_cast<std::int64_t>(cuda::computed_here(blockIdx.y)) * a.tiles + work.tile) * kM + row) *
              (static_cast<std::int64_t>(a.groups * a.out_blocks) * kN) +
          work.group_block * kN + warp_n * (kSpread ? 1 : kTilesN) * 16 + lane / 4;
      constexpr int kStep = kSpread ? 16 * kWarpsN : 16;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        to[n * kStep] = sums[n][m][j];
        to[n * kStep + 8] = sums[n][m][2 + j];
      }
    }
  }
}

// The threads that a tile's result comes from: a block, or the first kThreads of one.
struct WholeBlock {
  __device__ __forceinline__ static void wait() { __syncthreads(); }
};

// Which rows of a tile are to be written: all, or (forward_parts.cuh) those of some pieces, as bits.
struct AllPieces {
  template <int kM>
  __device__ __forceinline__ constexpr bool has(int) const {
    return true;
  }
};
struct SomePieces {
  unsigned bits;
  template <int kM>
  __device__ __forceinline__ bool has(int row) const {
    return (bits >> row / (kM / kPieces) & 1u) != 0;
  }
};

// forward_ring.cuh's sums in 16 bits, with bias and activation, to `staged`, as write_tile() says: 16 positions of 16
// channels at a time. kColumns: of the tile.
template <class V, int kM, int kWarpsN, int kTilesN, class Pieces>
__device__ __forceinline__ void stage_matrices(const Arguments& a, int group, int first_channel, int warp_n, V* staged,
                                               const float (&sums)[kTilesN][kM / 8][4], const Pieces& pieces) {
  constexpr int kRowPitch = kM + 8, kColumnPitch = kTilesN * kWarpsN * 16 + 8;  // in elements, of 16 bits
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float least = a.relu != 0 ? 0.0f : __int_as_float(static_cast<int>(0xff800000u));  // minus infinity
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
    const int first_column = (n * kWarpsN + warp_n) * 16;
    float bias[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int in_group = first_channel + first_column + i * 8 + lane / 4;
      bias[i] = a.bias != nullptr && in_group < a.group_out ? bias_of<V>(a, group * a.group_out + in_group) : 0.0f;
    }
    // Matrix 2 * m + i has 8 channels and 8 positions; a lane has the address of a row of it, of channels or positions.
    const int which = lane / 8, column = first_column + which % 2 * 8, row = which / 2 * 8;
    V* const to = a.channels_last_out != 0 ? staged + (row + lane % 8) * kColumnPitch + column
                                           : staged + (column + lane % 8) * kRowPitch + row;
#pragma unroll
    for (int m = 0; m < kM / 8; m += 2) {
      if (!pieces.template has<kM>(m * 8)) continue;
      std::uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&four)[4] = sums[n][m + i / 2];
        V pair[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float value = four[i % 2 * 2 + j] + bias[i % 2];
          if (value < least) value = 0;
          pair[j] = from_float<V>(value);
        }
        packed[i] = bit_copy<std::uint32_t>(pair);
      }
      if (a.channels_last_out != 0) {
        cuda::stmatrix_x4<true>(to + m * 8 * kColumnPitch, packed);
      } else {
        cuda::stmatrix_x4<false>(to + m * 8, packed);
      }
    }
  }
}

// Bias, activation and the way of a tile from registers to the output, through shared memory so that whole sectors are
// written whichever the layout: staged with positions inside for row-major output, with channels inside for
// channels-last. `pieces`: those of the positions that are to be written.
template <class V, int kM, int kN, int kWarpsM, int kWarpsN, int kBytes, bool kSpread = false,
          class Threads = WholeBlock, class Pieces = AllPieces>
__device__ __forceinline__ void write_tile(const Arguments& a, const TileConfig& config, std::int64_t tile, int group,
                                           int out_block, unsigned char* memory, int warp_m, int warp_n,
                                           const float (&sums)[kN / kWarpsN / 16][kM / kWarpsM / 8][4],
                                           const Pieces& pieces = {}) {
  constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  constexpr int kTilesM = kM / kWarpsM / 8, kTilesN = kN / kWarpsN / 16;
  constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(V));
  constexpr int kPasses = kN * (kM + 8) * static_cast<int>(sizeof(V)) <= kBytes ? 1 : 2;
  constexpr int kColumns = kN / kPasses;
  constexpr int kRowPitch = kM + kElements, kColumnPitch = kColumns + kElements;
  static_assert(kColumns * kRowPitch * static_cast<int>(sizeof(V)) <= kBytes &&
                    kM * kColumnPitch * static_cast<int>(sizeof(V)) <= kBytes,
                "a pass fits");
  V* const staged = reinterpret_cast<V*>(memory);
  const int thread = static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x % 32);
  const int channel_end = a.group_out - out_block * kN;  // columns that exist
  constexpr bool kMatrices = kSpread && sizeof(V) == 2 && kPasses == 1 && kWarpsM == 1;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    Threads::wait();  // the operands, or the pass before, have been read
    if constexpr (kMatrices) stage_matrices<V, kM, kWarpsN>(a, group, out_block * kN, warp_n, staged, sums, pieces);
#pragma unroll
    for (int n = 0; n < (kMatrices ? 0 : kTilesN); ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int tile_n = kSpread ? n * kWarpsN + warp_n : warp_n * kTilesN + n;
        const int column = tile_n * 16 + i * 8 + lane / 4 - pass * kColumns;
        if (column < 0 || column >= kColumns) continue;
        const int in_group = out_block * kN + pass * kColumns + column;
        const bool biased = a.bias != nullptr && in_group < a.group_out;
        const float bias = biased ? bias_of<V>(a, group * a.group_out + in_group) : 0.0f;
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          const int row = (warp_m * kTilesM + m) * 8 + lane % 4 * 2;
          if (!pieces.template has<kM>(row)) continue;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float value = sums[n][m][2 * i + j] + bias;
            if (a.relu != 0 && value < 0) value = 0;
            staged[a.channels_last_out != 0 ? (row + j) * kColumnPitch + column : column * kRowPitch + row + j] =
                from_float<V>(value);
          }
        }
      }
    }
    const TileOrigin origin = tile_origin(a, config, tile);
    Threads::wait();
    const int first = group * a.group_out + out_block * kN + pass * kColumns, count = channel_end - pass * kColumns;
    V* const output = static_cast<V*>(a.output) + first * a.output_stride[1];
    if (a.vectors_out != 0) {
      const int inside = a.channels_last_out != 0 ? kColumns / kElements : kM / kElements;
      for (int i = thread; i < kM * kColumns / kElements; i += kThreads) {
        const int outer = i / inside, inner = i % inside * kElements;
        const int row = a.channels_last_out != 0 ? outer : inner, column = a.channels_last_out != 0 ? inner : outer;
        if (!pieces.template has<kM>(row)) continue;
        const Position at = locate(a, origin, row);
        if (!at.inside || column >= count) continue;
        const uint4 vector = *reinterpret_cast<const uint4*>(
            staged + (a.channels_last_out != 0 ? row * kColumnPitch + column : column * kRowPitch + row));
        *reinterpret_cast<uint4*>(output + at.n * a.output_stride[0] + column * a.output_stride[1] +
                                  at.y * a.output_stride[2] + at.x * a.output_stride[3]) = vector;
      }
    } else {
      const int inside = a.channels_last_out != 0 ? kColumns : kM;
      for (int i = thread; i < kM * kColumns; i += kThreads) {
        const int row = a.channels_last_out != 0 ? i / inside : i % inside;
        const int column = a.channels_last_out != 0 ? i % inside : i / inside;
        if (!pieces.template has<kM>(row)) continue;
        const Position at = locate(a, origin, row);
        if (!at.inside || column >= count) continue;
        output[at.n * a.output_stride[0] + column * a.output_stride[1] + at.y * a.output_stride[2] +
               at.x * a.output_stride[3]] =
            staged[a.channels_last_out != 0 ? row * kColumnPitch + column : column * kRowPitch + row];
      }
    }
  }
}

}  // namespace
}  // namespace centermask::deform_forward
