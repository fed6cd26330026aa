// The forward kernel on tensor cores: an implicit matrix product whose left operand, the samples, is computed into
// shared memory one step of K ahead of the products that read it.
#pragma once

#include "cuda/mma.h"
#include "deform_conv2d/forward_sampling.cuh"

namespace centermask::deform_forward {
namespace {

// What the products are made of. Tf32 reads float32 and rounds the samples; the weights were rounded when packed.
struct MmaFloat16 : Float16 {
  __device__ static __forceinline__ uint4 operand(const float (&v)[8]) {
    return make_uint4(pack(Float16(), v[0], v[1]), pack(Float16(), v[2], v[3]), pack(Float16(), v[4], v[5]),
                      pack(Float16(), v[6], v[7]));
  }
  __device__ static __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    cuda::mma_m16n8k16_f16(c, a, b);
  }
};
struct MmaBFloat16 : BFloat16 {
  __device__ static __forceinline__ uint4 operand(const float (&v)[8]) {
    return make_uint4(pack(BFloat16(), v[0], v[1]), pack(BFloat16(), v[2], v[3]), pack(BFloat16(), v[4], v[5]),
                      pack(BFloat16(), v[6], v[7]));
  }
  __device__ static __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    cuda::mma_m16n8k16_bf16(c, a, b);
  }
};
struct MmaTf32 : Float32 {
  __device__ static __forceinline__ uint4 operand(const float (&v)[4]) {
    return make_uint4(cuda::to_tf32(v[0]), cuda::to_tf32(v[1]), cuda::to_tf32(v[2]), cuda::to_tf32(v[3]));
  }
  __device__ static __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    cuda::mma_m16n8k8_tf32(c, a, b);
  }
};

// Both operands lie in shared memory as their readers' lanes want them: [8 rows of the tile][2 halves of the
// chunk][lane 4*row + vector][16 bytes]. A lane's 16 bytes are its registers for two instructions: words 0 and 1 of the
// first, 2 and 3 of the second. (The order of K is free as long as both operands have the same; this one needs no
// ldmatrix, and all reads are of 512 consecutive bytes.) The samples' odd halves have neighbouring rows exchanged, so
// that the 8 lanes that write a row's 8 vectors meet all 32 banks.
constexpr int kRowsBytes = 8 * kChunkBytes;
__device__ __forceinline__ int sample_at(int row, int vector) {
  const int half = vector / 4;
  return row / 8 * kRowsBytes + half * (kRowsBytes / 2) + (((row % 8) ^ half) * 4 + vector % 4) * kVectorBytes;
}

template <class Type, int kM, int kN, int kWarpsM, int kWarpsN, int kBlocks>
__global__ void __launch_bounds__(32 * kWarpsM * kWarpsN, kBlocks) forward_mma(const Arguments a) {
  constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  constexpr int kTilesM = kM / kWarpsM / 16, kTilesN = kN / kWarpsN / 8;
  constexpr int kABytes = kM * kChunkBytes, kBBytes = kN * kChunkBytes;
  constexpr int kVectors = kM * kChunkVectors / kThreads;  // that a thread samples in a step
  constexpr int kParts = 4;                                // of the products of a step: 2 halves of K x 2 of N
  constexpr int kVectorsOfPart = (kVectors + kParts - 1) / kParts;
  static_assert(kThreads % kChunkVectors == 0 && kM % (kThreads / kChunkVectors) == 0, "threads divide the samples");
  static_assert(kTilesM >= 1 && kTilesN >= 2 && kTilesN % 2 == 0, "warps divide the tile");
  using V = typename Type::Value;
  constexpr TileConfig kTile = {kM, kN, kWarpsM, kWarpsN, kBlocks};

  CENTERMASK_DYNAMIC_SHARED(memory);
  unsigned char* const samples = memory;                // two stages
  unsigned char* const weights = memory + 2 * kABytes;  // two stages
  const Places places(memory + 2 * (kABytes + kBBytes), a.table_taps, kM);

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int warp_m = warp % kWarpsM, warp_n = warp / kWarpsM;
  const int blocks_of_tile = a.groups * a.out_blocks;
  const std::int64_t tile = blockIdx.x / blocks_of_tile;
  const int group_block = static_cast<int>(blockIdx.x - tile * blocks_of_tile);
  const int group = group_block / a.out_blocks, out_block = group_block - group * a.out_blocks;
  const int split = static_cast<int>(blockIdx.y);
  const std::int64_t first_step = a.steps * split / a.splits, end_step = a.steps * (split + 1) / a.splits;

  float sums[kTilesM][kTilesN][4];
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0;
  }

  Cursor next;
  const auto fill_table = [&] {
    find_places<V, kM, kThreads>(a, kTile, tile, next.offset_group(a, group), next.first_tap, next.block_taps, places);
  };
  const auto load_weights = [&](int stage) {
    const unsigned char* from =
        static_cast<const unsigned char*>(a.packed) + next.packed_tile(a, group, out_block) * kBBytes;
    unsigned char* to = weights + stage * kBBytes;
#pragma unroll
    for (int i = thread * kVectorBytes; i < kBBytes; i += kThreads * kVectorBytes) cuda::cp_async_16(to + i, from + i);
    cuda::cp_async_commit();
  };
  // The thread's samples are of vector `my_vector` of the chunk, at positions my_row + i * (kThreads / 8).
  const int my_vector = thread % kChunkVectors, my_row = thread / kChunkVectors;
  const auto gather_one = [&](int i, bool wanted, Neighbours& n) {
    const int vector = next.chunk * kChunkVectors + my_vector;
    gather(a, places, next.tap * kM + my_row + i * (kThreads / kChunkVectors),
           (group * a.segments + next.segment) * a.segment_vectors + vector, wanted && vector < a.segment_vectors, n);
  };
  const auto write_one = [&](int i, int stage, const Neighbours& n) {
    float values[Type::kElements];
    blend(Type(), n, values);
    *reinterpret_cast<uint4*>(samples + stage * kABytes +
                              sample_at(my_row + i * (kThreads / kChunkVectors), my_vector)) = Type::operand(values);
  };

  next.start(a, first_step);
  fill_table();
  load_weights(0);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    Neighbours n;
    gather_one(i, true, n);
    write_one(i, 0, n);
  }

  int stage = 0;
  for (std::int64_t step = first_step; step < end_step; ++step) {
    const bool more = step + 1 < end_step;
    if (more && next.advance(a)) {
      __syncthreads();  // the table was read for the samples of this step
      fill_table();
    }
    cuda::cp_async_wait<0>();
    __syncthreads();  // this step's operands are there; nobody reads the last one's
    if (more) load_weights(stage ^ 1);

    const unsigned char* const left = samples + stage * kABytes + warp_m * kTilesM * 2 * kRowsBytes;
    const unsigned char* const right = weights + stage * kBBytes + warp_n * kTilesN * kRowsBytes + lane * kVectorBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 rows[kTilesM][2];
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          rows[m][i] = *reinterpret_cast<const uint4*>(left + (2 * m + i) * kRowsBytes + half * (kRowsBytes / 2) +
                                                       ((lane ^ (half * 4)) * kVectorBytes));
        }
      }
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int part = 2 * half + side;
        Neighbours n[kVectorsOfPart] = {};
#pragma unroll
        for (int i = 0; i < kVectorsOfPart; ++i) {
          if (part * kVectorsOfPart + i < kVectors) gather_one(part * kVectorsOfPart + i, more, n[i]);
        }
#pragma unroll
        for (int j = 0; j < kTilesN / 2; ++j) {
          const int column = side * (kTilesN / 2) + j;
          const uint4 b = *reinterpret_cast<const uint4*>(right + column * kRowsBytes + half * (kRowsBytes / 2));
          const std::uint32_t first[2] = {b.x, b.y}, second[2] = {b.z, b.w};
#pragma unroll
          for (int m = 0; m < kTilesM; ++m) {
            const std::uint32_t a0[4] = {rows[m][0].x, rows[m][1].x, rows[m][0].y, rows[m][1].y};
            Type::mma(sums[m][column], a0, first);
          }
#pragma unroll
          for (int m = 0; m < kTilesM; ++m) {
            const std::uint32_t a1[4] = {rows[m][0].z, rows[m][1].z, rows[m][0].w, rows[m][1].w};
            Type::mma(sums[m][column], a1, second);
          }
        }
#pragma unroll
        for (int i = 0; i < kVectorsOfPart; ++i) {
          if (part * kVectorsOfPart + i < kVectors) write_one(part * kVectorsOfPart + i, stage ^ 1, n[i]);
        }
      }
    }
    stage ^= 1;
  }

  // Lane 4*g + t holds columns 2t and 2t+1 of rows g and g+8 of each 16 x 8 tile.
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = (warp_m * kTilesM + m) * 16 + i * 8 + lane / 4;
      const Position at = locate(a, kTile, tile, row);
      if (!at.inside) continue;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        const int column = (warp_n * kTilesN + n) * 8 + lane % 4 * 2;
        if (a.partial != nullptr) {
          float* to = a.partial +
                      ((static_cast<std::int64_t>(split) * a.tiles + tile) * kM + row) *
                          (static_cast<std::int64_t>(blocks_of_tile) * kN) +
                      group_block * kN + column;
          *reinterpret_cast<float2*>(to) = make_float2(sums[m][n][2 * i], sums[m][n][2 * i + 1]);
        } else {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int channel = out_block * kN + column + j;
            if (channel < a.group_out) store_result<V>(a, at, group * a.group_out + channel, sums[m][n][2 * i + j]);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace centermask::deform_forward
