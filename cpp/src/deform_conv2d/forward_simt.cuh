// The forward kernel without tensor cores, for every type below sm_80. The same walk and the same samples as
// forward_mma.cuh; the products are register blocks of fused multiply-adds.
#pragma once

#include "cuda/mma.h"
#include "deform_conv2d/forward_sampling.cuh"

namespace centermask::deform_forward {
namespace {

constexpr int kSimtThreads = 256;

// Both operands are held in float, k by k: samples [k][kM + 4], weights [k][kN].
template <class Type, int kM, int kN>
__global__ void __launch_bounds__(kSimtThreads, 2) forward_simt(const Arguments a) {
  constexpr int kElements = Type::kElements;
  constexpr int kVectorsAtOnce = 32 / kElements;  // K advances by 32 channels
  constexpr int kDepth = 32;
  constexpr int kPitch = kM + 4;  // keeps the writers of one row off each other's banks, and 16-byte alignment
  constexpr int kBlocksM = kM / 64, kBlocksN = kN / 64;  // a thread has so many 4 x 4 blocks, 64 apart
  using V = typename Type::Value;
  constexpr TileConfig kTile = {kM, kN, 0, 0, 0, 0};

  CENTERMASK_DYNAMIC_SHARED(memory);
  float* const samples = reinterpret_cast<float*>(memory);
  float* const weights = samples + kDepth * kPitch;
  const Places places(reinterpret_cast<unsigned char*>(weights + kDepth * kN), a.table_taps, kM);

  const int thread = static_cast<int>(threadIdx.x);
  const int rows = thread / 16 * 4, columns = thread % 16 * 4;
  const Work work(a, blockIdx.x);
  const int split = static_cast<int>(blockIdx.y);
  const std::int64_t first_step = a.steps * split / a.splits, end_step = a.steps * (split + 1) / a.splits;

  float sums[4 * kBlocksM][4 * kBlocksN];
#pragma unroll
  for (int m = 0; m < 4 * kBlocksM; ++m) {
#pragma unroll
    for (int n = 0; n < 4 * kBlocksN; ++n) sums[m][n] = 0;
  }

  Cursor at(a, work.group, first_step);
  bool fill = true;
  for (std::int64_t step = first_step; step < end_step; ++step) {
    if (fill) {
      find_places<V, kM, kSimtThreads, 1>(a, kTile, Work(a, cuda::computed_here(blockIdx.x)).tile, at, places);
      __syncthreads();
    }
    // A chunk has 8 vectors: for half precision two rounds of 32 channels.
    for (int first = 0; first < kChunkVectors; first += kVectorsAtOnce) {
#pragma unroll 1
      for (int i = thread; i < kM * kVectorsAtOnce; i += kSimtThreads) {
        const int row = i / kVectorsAtOnce, v = i % kVectorsAtOnce;
        const int vector = at.chunk * kChunkVectors + first + v;
        Neighbours n;
        gather(a, places, at.tap * kM + row,
               vector < a.segment_vectors ? static_cast<const uint4*>(a.x) + at.segment * a.segment_vectors + vector
                                          : nullptr,
               n);
        float values[kElements];
        blend(Type(), n, places.weights[at.tap * kM + row], values);
#pragma unroll
        for (int e = 0; e < kElements; ++e) samples[(v * kElements + e) * kPitch + row] = values[e];
      }
      const V* from = static_cast<const V*>(a.packed) +
                      ((work.group_block * a.steps + step) * kChunkVectors + first) * kElements * kN;
#pragma unroll 2
      for (int i = thread; i < kDepth * kN; i += kSimtThreads) weights[i] = to_float(from[i]);
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
        float left[4 * kBlocksM], right[4 * kBlocksN];
#pragma unroll
        for (int m = 0; m < kBlocksM; ++m) {
          *reinterpret_cast<float4*>(left + 4 * m) =
              *reinterpret_cast<const float4*>(samples + k * kPitch + rows + 64 * m);
        }
#pragma unroll
        for (int n = 0; n < kBlocksN; ++n) {
          *reinterpret_cast<float4*>(right + 4 * n) =
              *reinterpret_cast<const float4*>(weights + k * kN + columns + 64 * n);
        }
#pragma unroll
        for (int m = 0; m < 4 * kBlocksM; ++m) {
#pragma unroll
          for (int n = 0; n < 4 * kBlocksN; ++n) sums[m][n] = fmaf(left[m], right[n], sums[m][n]);
        }
      }
      __syncthreads();
    }
    if (step + 1 < end_step) fill = at.advance(a);
  }

#pragma unroll
  for (int m = 0; m < 4 * kBlocksM; ++m) {
    const int row = rows + m / 4 * 64 + m % 4;
    const Position position = locate(a, kTile, work.tile, row);
    if (!position.inside) continue;
#pragma unroll
    for (int n = 0; n < 4 * kBlocksN; ++n) {
      const int column = columns + n / 4 * 64 + n % 4, channel = work.out_block * kN + column;
      if (a.partial != nullptr) {
        a.partial[((static_cast<std::int64_t>(split) * a.tiles + work.tile) * kM + row) *
                      (static_cast<std::int64_t>(a.groups * a.out_blocks) * kN) +
                  work.group_block * kN + column] = sums[m][n];
      } else if (channel < a.group_out) {
        store_result<V>(a, position, work.group * a.group_out + channel, sums[m][n]);
      }
    }
  }
}

}  // namespace
}  // namespace centermask::deform_forward
