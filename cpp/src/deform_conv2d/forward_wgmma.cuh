// The forward kernel for Hopper: as forward_mma.cuh, with products of whole warpgroups, which read both operands from
// shared memory by themselves, while the threads sample the next step.
#pragma once

#include "cuda/wgmma.h"
#include "deform_conv2d/forward_mma.cuh"

namespace centermask::deform_forward {
namespace {

constexpr int kWgmmaPositions = 128;

template <int kTiles>
__device__ __forceinline__ void wgmma(const MmaFloat16&, float (&d)[kTiles][4], const void* a, const void* b, int k,
                                      bool add = true) {
  cuda::wgmma_f16(d, a, b, k, add);
}
template <int kTiles>
__device__ __forceinline__ void wgmma(const MmaBFloat16&, float (&d)[kTiles][4], const void* a, const void* b, int k,
                                      bool add = true) {
  cuda::wgmma_bf16(d, a, b, k, add);
}
template <int kTiles>
__device__ __forceinline__ void wgmma(const MmaTf32&, float (&d)[kTiles][4], const void* a, const void* b, int k,
                                      bool add = true) {
  cuda::wgmma_tf32(d, a, b, k, add);
}

// A tile of 128 positions x kN out channels. A warpgroup has 64 channels, and all positions or half of them (kSides =
// 2).
template <class Type, int kN, int kSides, int kBlocks>
__global__ void __launch_bounds__(kN / 64 * kSides * 128, kBlocks) forward_wgmma(const Arguments a) {
  constexpr int kM = kWgmmaPositions, kThreads = kN / 64 * kSides * 128, kWarpsN = kN / 16;
  constexpr int kABytes = kM * kChunkBytes, kBBytes = kN * kChunkBytes;
  constexpr int kVectors = kM * kChunkVectors / kThreads;  // that a thread samples in a step
  constexpr int kAtOnce = kVectors < 2 ? kVectors : 2;     // of them, loads under way together
  constexpr int kRowStep = kThreads / kChunkVectors;
  constexpr int kTilesM = kM / kSides / 8;
  using V = typename Type::Value;
  constexpr TileConfig kTile = {kM, kN, kSides, kWarpsN, kBlocks, 0};

  CENTERMASK_DYNAMIC_SHARED(unaligned);
  unsigned char* const memory = cuda::align_for_swizzle(unaligned);
  unsigned char* const samples = memory;                // two stages
  unsigned char* const weights = memory + 2 * kABytes;  // two stages
  const Places places(memory + 2 * (kABytes + kBBytes), a.table_taps, kM);

  const int thread = static_cast<int>(threadIdx.x);
  const int warp_m = static_cast<int>(threadIdx.x / 128) % kSides;
  const int warp_n = static_cast<int>(threadIdx.x / 128) / kSides * 4 + static_cast<int>(threadIdx.x % 128 / 32);
  const Work work(a, blockIdx.x);
  const std::int64_t first_step = a.steps * blockIdx.y / a.splits;
  int steps_left = static_cast<int>(a.steps * (blockIdx.y + 1) / a.splits - first_step);

  float sums[1][kTilesM][4];
#pragma unroll
  for (int j = 0; j < kTilesM; ++j) sums[0][j][0] = sums[0][j][1] = sums[0][j][2] = sums[0][j][3] = 0;

  Cursor next(a, work.group, first_step);
  find_places<V, kM, kThreads, 5>(a, kTile, work.tile, next, places);
  const unsigned char* packed =
      static_cast<const unsigned char*>(a.packed) + (work.group_block * a.steps + first_step) * kBBytes;
  const auto load_weights = [&](int stage) {
#pragma unroll
    for (int i = thread * kVectorBytes; i < kBBytes; i += kThreads * kVectorBytes) {
      cuda::cp_async_16(weights + stage * kBBytes + i, packed + i);
    }
    cuda::cp_async_commit();
    packed += kBBytes;
  };
  const int my_vector = static_cast<int>(threadIdx.x % kChunkVectors);
  const int my_row = static_cast<int>(threadIdx.x / kChunkVectors);
  unsigned char* const my_samples = samples + cuda::swizzled(my_row, my_vector);
  const auto write_samples = [&](int stage) {
    const int vector = next.chunk * kChunkVectors + my_vector;
    const uint4* const pixels =
        vector < a.segment_vectors
            ? static_cast<const uint4*>(a.x) + static_cast<std::int64_t>(next.segment) * a.segment_vectors + vector
            : nullptr;
    const int entry = next.tap * kM + my_row;
#pragma unroll
    for (int first = 0; first < kVectors; first += kAtOnce) {
      Neighbours neighbours[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) gather(a, places, entry + (first + i) * kRowStep, pixels, neighbours[i]);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        *reinterpret_cast<uint4*>(my_samples + stage * kABytes + (first + i) * kRowStep * kChunkBytes) =
            sample(Type(), neighbours[i], places.weights[entry + (first + i) * kRowStep]);
      }
    }
  };

  load_weights(0);
  __syncthreads();
  write_samples(0);
  int stage = 0;
  for (; steps_left > 0; --steps_left) {
    const bool more = steps_left > 1;
    if (more && next.advance(a)) {
      __syncthreads();  // the table was read for the samples of this step
      find_places<V, kM, kThreads, 1>(a, kTile, Work(a, cuda::computed_here(blockIdx.x)).tile, next, places);
    }
    cuda::cp_async_wait<0>();
    cuda::publish_to_async();
    __syncthreads();  // this step's operands are there; the last one's products are done
    const unsigned char* const left = weights + stage * kBBytes + thread / 128 / kSides * 64 * kChunkBytes;
    const unsigned char* const right = samples + stage * kABytes + warp_m * (kABytes / kSides);
    cuda::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma(Type(), sums[0], left, right, k);
    cuda::wgmma_commit();
    if (more) {
      load_weights(stage ^ 1);
      write_samples(stage ^ 1);
    }
    cuda::wgmma_wait();
    stage ^= 1;
  }

  const Work done(a, cuda::computed_here(blockIdx.x));
  if (a.partial != nullptr) {
    write_partial<kM, kN, kSides, kWarpsN>(a, done, warp_m, warp_n, sums);
  } else {
    write_tile<V, kM, kN, kSides, kWarpsN, 2 * (kABytes + kBBytes)>(a, kTile, done.tile, done.group, done.out_block,
                                                                    memory, warp_m, warp_n, sums);
  }
}

}  // namespace
}  // namespace centermask::deform_forward
