// Selection and sorting of keys by a block of threads.
#pragma once

#include <cstdint>

#include "decode/peaks.cuh"

namespace centermask::decode {

constexpr int kSelectThreads = 512;
constexpr int kBins = 2048;
constexpr int kBinsOfThread = kBins / kSelectThreads;

struct SelectMemory {
  std::uint32_t histogram[kBins];
  std::uint32_t warp_sums[kSelectThreads / kLanes];
  // Two of each, so that one pass may write while slow threads still read the outcome of the pass before it.
  std::uint32_t found[2];
  std::uint32_t bin[2];
  std::uint32_t still_needed[2];
  std::uint32_t bin_weight[2];
};

// The largest key such that the keys not below it weigh `needed` or more; 0 if all of them weigh less. A lower number
// that no key lies between may come in its place. for_each(take) must call take(key, weight) for every key, each from
// one thread of the block, and the same keys each time; the weights sum to less than 2^32. A radix select: at most six
// passes, and it ends when one bin's keys are all needed. All threads call it, and it ends in a barrier.
template <class ForEach>
__device__ Key select_key(std::uint32_t needed, SelectMemory& memory, const ForEach& for_each) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes;
  const int warp = thread / kLanes;
  Key prefix = 0;
  Key known = 0;  // the bits of the prefix that are settled
  int shift = 64;
  for (int pass = 0; pass < 6; ++pass) {
    shift -= pass % 3 == 2 ? 10 : 11;
    const Key digits = pass % 3 == 2 ? 1023 : 2047;
    const int slot = pass % 2;
    for (int i = thread; i < kBins; i += kSelectThreads) memory.histogram[i] = 0;
    if (thread == 0) memory.found[slot] = 0;
    __syncthreads();
    for_each([&](Key key, std::uint32_t weight) {
      if ((key & known) == prefix) atomicAdd(&memory.histogram[key >> shift & digits], weight);
    });
    __syncthreads();
    // Each thread sums bins from the top: thread 0 has the highest.
    const int top = kBins - 1 - kBinsOfThread * thread;
    std::uint32_t own = 0;
    for (int i = 0; i < kBinsOfThread; ++i) own += memory.histogram[top - i];
    std::uint32_t sum = own;
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const std::uint32_t before = __shfl_up_sync(kFull, sum, static_cast<unsigned>(distance));
      if (lane >= distance) sum += before;
    }
    if (lane == kLanes - 1) memory.warp_sums[warp] = sum;
    __syncthreads();
    for (int i = 0; i < warp; ++i) sum += memory.warp_sums[i];
    std::uint32_t above = sum - own;  // the weight of all bins above this thread's
    if (above < needed && needed <= sum) {
      for (int i = 0; i < kBinsOfThread; ++i) {
        const std::uint32_t weight = memory.histogram[top - i];
        if (above < needed && needed <= above + weight) {
          memory.found[slot] = 1;
          memory.bin[slot] = static_cast<std::uint32_t>(top - i);
          memory.still_needed[slot] = needed - above;
          memory.bin_weight[slot] = weight;
        }
        above += weight;
      }
    }
    __syncthreads();
    if (memory.found[slot] == 0) break;  // only in the first pass: prefix is 0
    prefix |= static_cast<Key>(memory.bin[slot]) << shift;
    known |= digits << shift;
    needed = memory.still_needed[slot];
    if (memory.bin_weight[slot] == needed) break;
  }
  __syncthreads();
  return prefix;
}

// Puts the keys `low` < `high` apart into descending or ascending order.
__device__ inline void order_pair(Key* keys, std::uint32_t low, std::uint32_t high, bool descending) {
  const Key a = keys[low];
  const Key b = keys[high];
  if ((a < b) == descending) {
    keys[low] = b;
    keys[high] = a;
  }
}

// The last steps of a bitonic sort, those with distances below `length`, for the stage that makes runs of `size` keys.
// keys[0] is the key number `base` of the whole. length is a power of two, and threads a multiple of 32. Ends in a
// barrier; the keys must be visible to the block at the start.
__device__ inline void bitonic_stage(Key* keys, std::uint32_t length, std::uint32_t base, std::uint32_t size) {
  for (std::uint32_t distance = (size < length ? size : length) / 2; distance > 0; distance /= 2) {
    for (std::uint32_t i = threadIdx.x; i < length / 2; i += blockDim.x) {
      const std::uint32_t low = 2 * i - (i & (distance - 1));
      order_pair(keys, low, low + distance, ((base + low) & size) == 0);
    }
    // Up to a distance of 32 a warp works within 64 keys of its own.
    if (distance > kLanes || distance == 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
}

// Largest first.
__device__ inline void bitonic_sort(Key* keys, std::uint32_t length) {
  for (std::uint32_t size = 2; size <= length; size *= 2) bitonic_stage(keys, length, 0, size);
}

}  // namespace centermask::decode
