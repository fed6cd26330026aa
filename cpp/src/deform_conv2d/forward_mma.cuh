// The forward kernel on tensor cores: an implicit matrix product whose left operand, the samples, is computed into
// shared memory one step of K ahead of the products that read it.
#pragma once

#include "cuda/mma.h"
#include "deform_conv2d/forward_sampling.cuh"
#include "deform_conv2d/forward_write.cuh"

namespace centermask::deform_forward {
namespace {

// What the products are made of: operand() is how samples lie in shared memory; Left and Right are registers of one
// instruction, from four and two words of there. kApart: each step of K is summed on its own first.
struct PlainRegisters {
  struct Left {
    std::uint32_t words[4];
    __device__ __forceinline__ explicit Left(const uint4& w) : words{w.x, w.y, w.z, w.w} {}
  };
  struct Right {
    std::uint32_t words[2];
    __device__ __forceinline__ Right(std::uint32_t x, std::uint32_t y) : words{x, y} {}
  };
  static constexpr bool kApart = false;
  static constexpr Study kStudy = Study::kNone;
};

struct MmaFloat16 : Float16, PlainRegisters {
  __device__ static __forceinline__ uint4 operand(const float (&v)[8]) {
    return make_uint4(pack(Float16(), v[0], v[1]), pack(Float16(), v[2], v[3]), pack(Float16(), v[4], v[5]),
                      pack(Float16(), v[6], v[7]));
  }
  __device__ static __forceinline__ void mma(float (&c)[4], const Left& a, const Right& b) {
    cuda::mma_m16n8k16_f16(c, a.words, b.words);
  }
};
#if defined(CENTERMASK_TUNING)
template <Study kWhich>
struct StudyFloat16 : MmaFloat16 {
  static constexpr Study kStudy = kWhich;
};
#endif
struct MmaBFloat16 : BFloat16, PlainRegisters {
  __device__ static __forceinline__ uint4 operand(const float (&v)[8]) {
    return make_uint4(pack(BFloat16(), v[0], v[1]), pack(BFloat16(), v[2], v[3]), pack(BFloat16(), v[4], v[5]),
                      pack(BFloat16(), v[6], v[7]));
  }
  __device__ static __forceinline__ void mma(float (&c)[4], const Left& a, const Right& b) {
    cuda::mma_m16n8k16_bf16(c, a.words, b.words);
  }
};
// float32 read, samples rounded to tf32; the weights were rounded when packed.
struct MmaTf32 : Float32, PlainRegisters {
  __device__ static __forceinline__ uint4 operand(const float (&v)[4]) {
    return make_uint4(cuda::to_tf32(v[0]), cuda::to_tf32(v[1]), cuda::to_tf32(v[2]), cuda::to_tf32(v[3]));
  }
  __device__ static __forceinline__ void mma(float (&c)[4], const Left& a, const Right& b) {
    cuda::mma_m16n8k8_tf32(c, a.words, b.words);
  }
};
// float32 with all of its precision: each number is the sum of two of tf32, the product the sum of three (that of the
// two small parts is below float32's last bit). The tensor cores cut off what does not fit when they add to a large
// sum, always towards zero; so their sums are kept short, and added up by ordinary additions, which round.
struct MmaFloat32 : Float32 {
  struct Left {
    std::uint32_t high[4], low[4];
    __device__ __forceinline__ explicit Left(const uint4& w) {
      const std::uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) divide(words[i], high[i], low[i]);
    }
  };
  struct Right {
    std::uint32_t high[2], low[2];
    __device__ __forceinline__ Right(std::uint32_t x, std::uint32_t y) {
      divide(x, high[0], low[0]);
      divide(y, high[1], low[1]);
    }
  };
  static constexpr bool kApart = true;
  static constexpr Study kStudy = Study::kNone;
  __device__ static __forceinline__ void divide(std::uint32_t bits, std::uint32_t& high, std::uint32_t& low) {
    const float value = bit_copy<float>(bits);
    high = cuda::to_tf32(value);
    low = bit_copy<std::uint32_t>(value - bit_copy<float>(high));
  }
  __device__ static __forceinline__ uint4 operand(const float (&v)[4]) {
    return make_uint4(bit_copy<unsigned>(v[0]), bit_copy<unsigned>(v[1]), bit_copy<unsigned>(v[2]),
                      bit_copy<unsigned>(v[3]));
  }
  __device__ static __forceinline__ void mma(float (&c)[4], const Left& a, const Right& b) {
    cuda::mma_m16n8k8_tf32(c, a.low, b.high);
    cuda::mma_m16n8k8_tf32(c, a.high, b.low);
    cuda::mma_m16n8k8_tf32(c, a.high, b.high);
  }
};

template <class Type>
__device__ __forceinline__ uint4 sample(Type type, const Neighbours& n, const float4& weights) {
  float values[Type::kElements];
  blend(type, n, weights, values);
  return Type::operand(values);
}
#if defined(CENTERMASK_TUNING)
__device__ __forceinline__ uint4 sample(StudyFloat16<Study::kNoBlend>, const Neighbours& n, const float4& places) {
  unsigned result[4] = {bit_copy<unsigned>(places.x), 0, 0, 0};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    result[0] ^= n.pixel[corner].x, result[1] ^= n.pixel[corner].y;
    result[2] ^= n.pixel[corner].z, result[3] ^= n.pixel[corner].w;
  }
  return make_uint4(result[0], result[1], result[2], result[3]);
}
__device__ __forceinline__ uint4 sample(StudyFloat16<Study::kHalfBlend>, const Neighbours& n, const float4& places) {
  const __half2 weights[4] = {__float2half2_rn(places.x), __float2half2_rn(places.y), __float2half2_rn(places.z),
                              __float2half2_rn(places.w)};
  unsigned result[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    __half2 sum = __float2half2_rn(0.0f);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const uint4& pixel = n.pixel[corner];
      const unsigned word = i == 0 ? pixel.x : i == 1 ? pixel.y : i == 2 ? pixel.z : pixel.w;
      sum = __hfma2(weights[corner], bit_copy<__half2>(word), sum);
    }
    result[i] = bit_copy<unsigned>(sum);
  }
  return make_uint4(result[0], result[1], result[2], result[3]);
}
#endif

// The weights are the left operand of the instructions and the samples the right one, so that a lane's 16 bytes of a
// sample row, 8 (in float32 4) channels that follow each other, are its registers for two instructions as they come:
// words 0 and 1 for the first, 2 and 3 for the second. (The order of K is free as long as both operands have the same.)
// Samples lie in shared memory as [8 rows][2 halves of the chunk][lane 4*row + vector % 4][16 bytes], weights as [16
// out channels][2 halves][2 instructions][lane][16 bytes]: all reads are of 512 consecutive bytes, with no ldmatrix.
// The samples' odd halves have neighbouring rows exchanged, so that the 8 lanes that write a row's 8 vectors meet all
// banks.
constexpr int kRowsBytes = 8 * kChunkBytes;
constexpr int kOutBytes = 16 * kChunkBytes;
__device__ __forceinline__ int sample_at(int row, int vector) {
  const int half = vector / 4;
  return row / 8 * kRowsBytes + half * (kRowsBytes / 2) + (((row % 8) ^ half) * 4 + vector % 4) * kVectorBytes;
}

template <class Type, int kM, int kN, int kWarpsM, int kWarpsN, int kBlocks>
__global__ void __launch_bounds__(32 * kWarpsM * kWarpsN, kBlocks) forward_mma(const Arguments a) {
  constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  constexpr int kTilesM = kM / kWarpsM / 8, kTilesN = kN / kWarpsN / 16;
  constexpr int kABytes = kM * kChunkBytes, kBBytes = kN * kChunkBytes;
  constexpr int kVectors = kM * kChunkVectors / kThreads;  // that a thread samples in a step
  constexpr int kParts = 4;                                // of the products of a step: 2 halves of K x 2 of N
  constexpr int kVectorsOfPart = (kVectors + kParts - 1) / kParts;
  static_assert(kThreads % kChunkVectors == 0 && kM % (kThreads / kChunkVectors) == 0, "threads divide the samples");
  static_assert(kTilesN >= 1 && kTilesM >= 2 && kTilesM % 2 == 0, "warps divide the tile");
  using V = typename Type::Value;
  constexpr TileConfig kTile = {kM, kN, kWarpsM, kWarpsN, kBlocks, 0};
#if !defined(CENTERMASK_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kM * kN > 128 * 128) {  // the host does not choose it
    __trap();
    return;
  }
#endif

#if !defined(CENTERMASK_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  [[maybe_unused]] constexpr int kHalvesAtOnce = 1;  // the registers do not do for two there
#else
  [[maybe_unused]] constexpr int kHalvesAtOnce = 2;
#endif

  CENTERMASK_DYNAMIC_SHARED(memory);
  unsigned char* const samples = memory;                // two stages
  unsigned char* const weights = memory + 2 * kABytes;  // two stages
  const Places places(memory + 2 * (kABytes + kBBytes), a.table_taps, kM);

  const int thread = static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int warp_m = warp % kWarpsM, warp_n = warp / kWarpsM;
  const int split = static_cast<int>(blockIdx.y);
  const Work work(a, blockIdx.x);
  const std::int64_t first_step = a.steps * split / a.splits;
  int steps_left = static_cast<int>(a.steps * (split + 1) / a.splits - first_step);

  float sums[kTilesN][kTilesM][4];
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) sums[n][m][0] = sums[n][m][1] = sums[n][m][2] = sums[n][m][3] = 0;
  }

  Cursor next(a, work.group, first_step);
  find_places<V, kM, kThreads, 5>(a, kTile, work.tile, next, places);
  const unsigned char* packed =
      static_cast<const unsigned char*>(a.packed) + (work.group_block * a.steps + first_step) * kBBytes;
  const auto load_weights = [&](int stage) {
    unsigned char* to = weights + stage * kBBytes;
#pragma unroll
    for (int i = thread * kVectorBytes; i < kBBytes; i += kThreads * kVectorBytes)
      cuda::cp_async_16(to + i, packed + i);
    cuda::cp_async_commit();
    packed += kBBytes;
  };
  // The thread's samples are of vector `my_vector` of the chunk, at positions my_row + i * kRowStep.
  constexpr int kRowStep = kThreads / kChunkVectors;
  static_assert(kRowStep % 8 == 0, "samples of a thread lie whole rows of tiles apart");
  const int my_vector = static_cast<int>(threadIdx.x % kChunkVectors);
  const int my_row = static_cast<int>(threadIdx.x / kChunkVectors);
  unsigned char* const my_samples = samples + sample_at(my_row, my_vector);
  // What is the same for all of a step.
  const uint4* pixels;  // channels of the first pixel, null if there are none
  int entry;            // of the table
  const auto start_samples = [&](bool wanted) {
    const int vector = next.chunk * kChunkVectors + my_vector;
    pixels = wanted && vector < a.segment_vectors
                 ? static_cast<const uint4*>(a.x) + next.segment * a.segment_vectors + vector
                 : nullptr;
    entry = next.tap * kM + my_row;
  };
  const auto gather_one = [&](int i, Neighbours& n) { gather(a, places, entry + i * kRowStep, pixels, n); };
  const auto write_one = [&](int i, int to, const Neighbours& n) {
    *reinterpret_cast<uint4*>(my_samples + to * kABytes + i * (kRowStep / 8) * kRowsBytes) =
        sample(Type(), n, places.weights[entry + i * kRowStep]);
  };

  load_weights(0);
  __syncthreads();
  start_samples(true);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    Neighbours n;
    gather_one(i, n);
    write_one(i, 0, n);
  }

  int stage = 0;
  for (; steps_left > 0; --steps_left) {
    const bool more = steps_left > 1;
    if (more && next.advance(a)) {
      __syncthreads();  // the table was read for the samples of this step
      // Seldom, and with few registers left.
      find_places<V, kM, kThreads, 1>(a, kTile, Work(a, cuda::computed_here(blockIdx.x)).tile, next, places,
                                      kHalvesAtOnce == 1 ? cuda::computed_here(threadIdx.x) : threadIdx.x);
    }
    cuda::cp_async_wait<0>();
    __syncthreads();  // this step's operands are there; nobody reads the last one's
    if (more) load_weights(stage ^ 1);
    start_samples(more);

    float step_sums[kTilesN][kTilesM][4] = {};  // no registers unless kApart
    // Where registers are scarce these are found again in each step.
    const int here = static_cast<int>(kHalvesAtOnce == 1 ? cuda::computed_here(threadIdx.x) : 0u);
    const int my_lane = kHalvesAtOnce == 1 ? here % 32 : lane;
    const int my_warp_m = kHalvesAtOnce == 1 ? here / 32 % kWarpsM : warp_m;
    const int my_warp_n = kHalvesAtOnce == 1 ? here / 32 / kWarpsM : warp_n;
    const unsigned char* const left =
        weights + stage * kBBytes + my_warp_n * kTilesN * kOutBytes + my_lane * kVectorBytes;
    const unsigned char* const right = samples + stage * kABytes + my_warp_m * kTilesM * kRowsBytes;
#pragma unroll kHalvesAtOnce
    for (int half = 0; half < 2; ++half) {
      uint4 out[kTilesN][2];
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        const unsigned char* const from = left + n * kOutBytes + half * (kOutBytes / 2);
        out[n][0] = *reinterpret_cast<const uint4*>(from);
        out[n][1] = *reinterpret_cast<const uint4*>(from + kOutBytes / 4);
      }
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int part = 2 * half + side;
        Neighbours neighbours[kVectorsOfPart] = {};
#pragma unroll
        for (int i = 0; i < kVectorsOfPart; ++i) {
          if (part * kVectorsOfPart + i < kVectors) gather_one(part * kVectorsOfPart + i, neighbours[i]);
        }
#pragma unroll
        for (int j = 0; j < kTilesM / 2; ++j) {
          const int m = side * (kTilesM / 2) + j;
          const uint4 row = *reinterpret_cast<const uint4*>(right + m * kRowsBytes + half * (kRowsBytes / 2) +
                                                            ((my_lane ^ (half * 4)) * kVectorBytes));
          const typename Type::Right first(row.x, row.y), second(row.z, row.w);
#pragma unroll
          for (int n = 0; n < kTilesN; ++n) {
            Type::mma(Type::kApart ? step_sums[n][m] : sums[n][m], typename Type::Left(out[n][0]), first);
          }
#pragma unroll
          for (int n = 0; n < kTilesN; ++n) {
            Type::mma(Type::kApart ? step_sums[n][m] : sums[n][m], typename Type::Left(out[n][1]), second);
          }
        }
#pragma unroll
        for (int i = 0; i < kVectorsOfPart; ++i) {
          if (part * kVectorsOfPart + i < kVectors) write_one(part * kVectorsOfPart + i, stage ^ 1, neighbours[i]);
        }
      }
    }
    if (Type::kApart) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[n][m][i] += step_sums[n][m][i];
        }
      }
    }
    stage ^= 1;
  }

  const Work done(a, cuda::computed_here(blockIdx.x));
  if (a.partial != nullptr) {
    write_partial<kM, kN, kWarpsM, kWarpsN>(a, done, warp_m, warp_n, sums);
  } else {
    write_tile<V, kM, kN, kWarpsM, kWarpsN, 2 * (kABytes + kBBytes)>(a, kTile, done.tile, done.group, done.out_block,
                                                                     memory, warp_m, warp_n, sums);
  }
}

}  // namespace
}  // namespace centermask::deform_forward
