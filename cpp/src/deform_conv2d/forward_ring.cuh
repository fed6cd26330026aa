// The forward kernel for Hopper: some warps sample, others multiply, each at their own pace. Operands of several steps
// of K are in shared memory, in a ring: whoever samples runs ahead as far as there is room.
#pragma once

#include "cuda/pipeline.h"
#include "deform_conv2d/forward_parts.cuh"
#include "deform_conv2d/forward_wgmma.cuh"

namespace centermask::deform_forward {
namespace {

// A tile of kM positions x kN out channels: kGroups warpgroups multiply, each for kTilesN times 64 channels that lie
// kGroups * 64 apart; kWarps warps after them sample. A stage of the ring has the samples and the weights of one step,
// and where Type::kApart the rest of each number, which tf32 does not hold, after them. The places of all taps are in
// shared memory from the beginning: all channels of a group have the same offsets, and the taps fit.
template <class Type, int kM, int kN, int kWarps, int kGroups, int kBlocks>
struct RingShape {
  static constexpr int kTilesN = kN / 64 / kGroups;
  static constexpr int kMultiplying = kGroups * 128, kSampling = 32 * kWarps;  // threads
  static constexpr int kThreads = kMultiplying + kSampling;
  static constexpr int kParts = Type::kApart ? 2 : 1;
  // Registers that a thread begins with; and, where these are too few for the sums, that it has in each role.
  static constexpr int kGiven = 65536 / (kBlocks * kThreads) / 8 * 8;
  static constexpr int kForSums = kM / 2 * kTilesN * (Type::kApart ? 2 : 1) + 32;
  static constexpr bool kShift = kGiven < kForSums;
  static constexpr int kForSamples =
      kShift ? (kGiven * kThreads - kForSums * kMultiplying) / kSampling / 8 * 8 : kGiven;
  // A thread's samples in a step; those whose neighbours are in registers or on their way there.
  static constexpr int kItems = kM * kChunkVectors / kSampling;
  static constexpr int kSets = kItems % 4 == 0 && kForSamples >= 112 ? 4 : 2;
};

// The first kThreads threads of the block.
template <int kThreads>
struct FirstThreads {
  __device__ __forceinline__ static void wait() { cuda::barrier_of(1, kThreads); }
};

// The table of places for warps that do little but sample: nothing is left to be computed. A place has the four
// weights; and the address of the first neighbour, as two words, and how many bytes further the ones to its right and
// below it are, 0 where there is none. Samples outside the image are read from zeros.
struct RingPlace {
  float4 weights;
  uint4 where;
};
struct RingPlaces {
  RingPlace* all;  // [tap][position]

  __device__ __forceinline__ void put(const Arguments& a, int entry, const float4& four, const int2& index) const {
    const bool inside = index.x >= 0;
    const std::uint64_t address =
        reinterpret_cast<std::uintptr_t>(inside ? static_cast<const uint4*>(a.x) + index.x : a.zeros);
    all[entry].weights = four;
    all[entry].where = make_uint4(static_cast<unsigned>(address), static_cast<unsigned>(address >> 32),
                                  inside && (index.y & 1) != 0 ? static_cast<unsigned>(a.x_pixel) * kVectorBytes : 0u,
                                  inside && (index.y & 2) != 0 ? static_cast<unsigned>(a.x_row) * kVectorBytes : 0u);
  }
};
static_assert(sizeof(RingPlace) == kRingPlaceBytes, "what the plan counts");

// `bytes`: of the vector in its pixel.
__device__ __forceinline__ void gather(const uint4& where, unsigned bytes, Neighbours& n) {
  const unsigned char* const top =
      reinterpret_cast<const unsigned char*>((static_cast<std::uint64_t>(where.y) << 32 | where.x) + bytes);
  const unsigned char* const bottom = top + where.w;
  n.pixel[0] = cuda::load_global(top);
  n.pixel[1] = cuda::load_global(top + where.z);
  n.pixel[2] = cuda::load_global(bottom);
  n.pixel[3] = cuda::load_global(bottom + where.z);
}

// A sample into a stage, `to` its 16 bytes there and kPart bytes on the place of its rest; zeros unless `present`.
template <class Type, int kPart>
__device__ __forceinline__ void write_sample(Type type, const Neighbours& n, const float4& weights, bool present,
                                             unsigned char* to) {
  if constexpr (Type::kApart) {
    float values[Type::kElements];
    blend(type, n, weights, values);
    unsigned high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) Type::divide(bit_copy<unsigned>(values[i]), high[i], low[i]);
    cuda::store_shared_or_zero(to, make_uint4(high[0], high[1], high[2], high[3]), present);
    cuda::store_shared_or_zero(to + kPart, make_uint4(low[0], low[1], low[2], low[3]), present);
  } else {
    cuda::store_shared_or_zero(to, sample(type, n, weights), present);
  }
}

// The products of one step. `left`: weights, `right`: samples. An instruction for 128 positions needs 90 registers at
// the kernel's beginning.
template <class Type, int kLeftPart, int kRightPart, bool kHalves, int kTiles>
__device__ __forceinline__ void multiply_step(Type type, float (&sums)[kTiles][4], const unsigned char* left,
                                              const unsigned char* right) {
  if constexpr (kHalves && kTiles > 8) {
    float (&low)[kTiles / 2][4] = *reinterpret_cast<float (*)[kTiles / 2][4]>(&sums[0]);
    float (&high)[kTiles / 2][4] = *reinterpret_cast<float (*)[kTiles / 2][4]>(&sums[kTiles / 2]);
    multiply_step<Type, kLeftPart, kRightPart, false>(type, low, left, right);
    multiply_step<Type, kLeftPart, kRightPart, false>(type, high, left, right + kTiles * 4 * kChunkBytes);
  } else if constexpr (Type::kApart) {
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma(MmaTf32(), sums, left + kLeftPart, right, k, k > 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma(MmaTf32(), sums, left, right + kRightPart, k);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma(MmaTf32(), sums, left, right, k);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma(type, sums, left, right, k);
  }
}

template <class Type, int kM, int kN, int kWarps, int kGroups, int kStages, int kBlocks>
__global__ void __launch_bounds__(RingShape<Type, kM, kN, kWarps, kGroups, kBlocks>::kThreads, kBlocks)
    forward_ring(const Arguments a) {
  using V = typename Type::Value;
  using Shape = RingShape<Type, kM, kN, kWarps, kGroups, kBlocks>;
  constexpr int kMultiplying = Shape::kMultiplying, kSampling = Shape::kSampling, kTilesN = Shape::kTilesN;
  constexpr int kAPart = kM * kChunkBytes, kBPart = kN * kChunkBytes;
  constexpr int kABytes = kAPart * Shape::kParts, kBBytes = kBPart * Shape::kParts, kStageBytes = kABytes + kBBytes;
  constexpr int kTilesM = kM / 8;
  constexpr TileConfig kTile = {kM, kN, kWarps, 4 * kGroups, kBlocks, kStages};
  static_assert(16 * kStages + 4 * kPieces <= kRingBarrierBytes, "the barriers and the counts fit");

  CENTERMASK_DYNAMIC_SHARED(unaligned);
  unsigned char* const memory = cuda::align_for_swizzle(unaligned);  // stages, each samples and weights
  cuda::Mbarrier* const full = reinterpret_cast<cuda::Mbarrier*>(memory + kStages * kStageBytes);
  cuda::Mbarrier* const empty = full + kStages;
  int* const counts = reinterpret_cast<int*>(empty + kStages);
  const RingPlaces places{reinterpret_cast<RingPlace*>(memory + kStages * kStageBytes + kRingBarrierBytes)};

  const int thread = static_cast<int>(threadIdx.x);
  const Work work(a, blockIdx.x);
  const int first_step = a.splits == 1 ? 0 : static_cast<int>(a.steps * blockIdx.y / a.splits);
  const int steps =
      a.splits == 1 ? static_cast<int>(a.steps) : static_cast<int>(a.steps * (blockIdx.y + 1) / a.splits) - first_step;
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      cuda::mbarrier_init(full[stage], kWarps + 1);  // and the weights
      cuda::mbarrier_init(empty[stage], kMultiplying / 32);
    }
    cuda::mbarrier_publish_init();
  }
  constexpr int kTapsAtOnce = (9 * kM + Shape::kThreads - 1) / Shape::kThreads;
  find_places<V, kM, Shape::kThreads, kTapsAtOnce>(a, kTile, work.tile, Cursor(work.group), places);
  __syncthreads();

  if (thread < kMultiplying) {
    if constexpr (Shape::kShift) cuda::take_registers<Shape::kForSums>();
    float sums[kTilesN][kTilesM][4];
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
      for (int j = 0; j < kTilesM; ++j) sums[n][j][0] = sums[n][j][1] = sums[n][j][2] = sums[n][j][3] = 0;
    }
    const unsigned char* packed =
        static_cast<const unsigned char*>(a.packed) + (work.group_block * a.steps + first_step) * kBBytes;
    const auto load_weights = [&](int stage) {
      cuda::mbarrier_arrive_expect(full[stage], kBBytes);
      cuda::copy_bulk(memory + stage * kStageBytes + kABytes, packed, kBBytes, full[stage]);
      packed += kBBytes;
    };
    if (thread == 0) {
      cuda::wait_for_kernel_before();
      for (int stage = 0; stage < kStages && stage < steps; ++stage) load_weights(stage);
    }
    __syncwarp();
    // Gives back the stage of a step whose products are done; the first thread fetches the weights of the next step
    // that takes its place.
    const auto release = [&](int step, int stage, int phase) {
      if (thread % 32 == 0) cuda::mbarrier_arrive(empty[stage]);
      if (thread == 0 && step + kStages < steps) {
        cuda::mbarrier_wait(empty[stage], phase);
        load_weights(stage);
      }
      __syncwarp();
    };
    int stage = 0, phase = 0;
    for (int step = 0; step < steps; ++step) {
      cuda::mbarrier_wait(full[stage], phase);
      // What has been sampled is made known to the tensor cores' way into shared memory here, and not by those that
      // sample: the fence would have them wait for their gathers too.
      cuda::publish_to_async();
      const unsigned char* const right = memory + stage * kStageBytes;
      const unsigned char* const left = right + kABytes + thread / 128 * 64 * kChunkBytes;
      if constexpr (Type::kApart) {
        static_assert(kTilesN == 1, "registers for two sums of one tile");
        float step_sums[kTilesM][4];
        cuda::wgmma_fence();
        multiply_step<Type, kBPart, kAPart, (Shape::kGiven < 90)>(Type(), step_sums, left, right);
        cuda::wgmma_commit();
        cuda::wgmma_wait<0>();
        release(step, stage, phase);
#pragma unroll
        for (int j = 0; j < kTilesM; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[0][j][i] += step_sums[j][i];
        }
      } else {
        cuda::wgmma_fence();
#pragma unroll
        for (int n = 0; n < (Type::kStudy == Study::kNoProduct ? 0 : kTilesN); ++n) {
          multiply_step<Type, kBPart, kAPart, (Shape::kGiven < 90)>(Type(), sums[n], left + n * (kBPart / kTilesN),
                                                                    right);
        }
        cuda::wgmma_commit();
        cuda::wgmma_wait<1>();
        // The products of the step before are done.
        if (step > 0) release(step - 1, stage == 0 ? kStages - 1 : stage - 1, stage == 0 ? phase ^ 1 : phase);
      }
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
    cuda::wgmma_wait<0>();
    cuda::let_next_kernel_begin();
    const int warp_n = static_cast<int>(cuda::computed_here(threadIdx.x)) / 32;
    if (a.splits > 1 && a.counters == nullptr) {
      write_partial<kM, kN, 1, 4 * kGroups, true>(a, Work(a, cuda::computed_here(blockIdx.x)), 0, warp_n, sums);
      return;
    }
    SomePieces pieces{~0u};
    if (a.splits > 1) {
      const std::int64_t block = cuda::computed_here(blockIdx.x);
      pieces.bits = add_parts<kMultiplying, kStages * kStageBytes, FirstThreads<kMultiplying>>(
          reinterpret_cast<float4*>(a.partial) + block * a.splits * (kM * kN / 4), a.counters + block * kPieces,
          a.splits, static_cast<int>(cuda::computed_here(blockIdx.y)),
          static_cast<int>(cuda::computed_here(threadIdx.x)), counts, memory, sums);
      if (pieces.bits == 0) return;
    }
    const Work done(a, cuda::computed_here(blockIdx.x));
    write_tile<V, kM, kN, 1, 4 * kGroups, kStages * kStageBytes, true, FirstThreads<kMultiplying>>(
        a, kTile, done.tile, done.group, done.out_block, memory, 0, warp_n, sums, pieces);
  } else {
    if constexpr (Shape::kShift) cuda::give_registers<Shape::kForSamples>();
    const int sampler = thread - kMultiplying;
    // A thread's samples are of vector my_vector of the chunk, at positions my_row + i * kRowStep.
    constexpr int kRowStep = kSampling / kChunkVectors, kItems = Shape::kItems, kSets = Shape::kSets;
    static_assert(kRowStep % 8 == 0 && kItems % kSets == 0, "sets of registers take turns");
    const int my_vector = sampler % kChunkVectors, my_row = sampler / kChunkVectors;
    unsigned char* const my_samples = memory + cuda::swizzled(my_row, my_vector);

    cuda::wait_for_kernel_before();

    int tap = first_step % a.taps;
    int vector = first_step / a.taps * kChunkVectors + my_vector;  // of the segment
    const RingPlace* place = places.all + tap * kM + my_row;       // of the step's first sample
    unsigned bytes = 0;                                            // of the vector in its pixel
    bool present = false;                                          // is there one, or has the segment ended?
    const auto start = [&] {
      present = vector < a.segment_vectors;
      bytes = static_cast<unsigned>(work.group * a.segment_vectors + min(vector, a.segment_vectors - 1)) * kVectorBytes;
    };
    const auto advance = [&] {
      place += kM;
      if (++tap == a.taps) {
        tap = 0, place -= a.taps * kM;
        vector += kChunkVectors;
        if (vector >= a.chunks * kChunkVectors) vector -= a.chunks * kChunkVectors;
      }
      start();
    };
    // While a sample is blended the loads of the next ones are under way, also from one step to the next, and the place
    // of the one after these has been read.
    Neighbours neighbours[kSets];
    uint4 where = make_uint4(0, 0, 0, 0);
    const auto read_place = [&](int i) { where = cuda::load_shared(&place[i * kRowStep].where); };
    const auto gather_into = [&](int set) {
      if constexpr (Type::kStudy == Study::kNoGather) {
        const std::uint64_t zeros = reinterpret_cast<std::uintptr_t>(a.zeros);
        where = make_uint4(static_cast<unsigned>(zeros), static_cast<unsigned>(zeros >> 32), 0, 0);
      }
      gather(where, bytes, neighbours[set]);
    };
    start();
    read_place(0);
#pragma unroll
    for (int i = 0; i < kSets - 1; ++i) {
      gather_into(i);
      read_place(i + 1);
    }
    int stage = 0, phase = 1;  // `empty` begins as if a phase before the first had ended
    for (int steps_left = steps; steps_left > 0; --steps_left) {
      unsigned char* const to = my_samples + stage * kStageBytes;
      const RingPlace* const place_here = place;
      const bool present_here = present;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int ahead = i + kSets - 1;
        gather_into(ahead % kSets);
        if (ahead == kItems - 1) {  // After the last step the first sample of some step is gathered once more.
          advance();
        }
        read_place((ahead + 1) % kItems);
        if (i == 0) cuda::mbarrier_wait(empty[stage], phase);
        // The compiler would rather blend first, to save registers, and then wait for the loads: it moves none across
        // this, and what is read after it is needed for the blend.
        __syncwarp();
        const float4 four = cuda::load_shared(&place_here[i * kRowStep].weights);
        write_sample<Type, kAPart>(Type(), neighbours[i % kSets], four, present_here, to + i * kRowStep * kChunkBytes);
      }
      __syncwarp();
      if (thread % 32 == 0) cuda::mbarrier_arrive(full[stage]);
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
    cuda::let_next_kernel_begin();
  }
}

}  // namespace
}  // namespace centermask::deform_forward
