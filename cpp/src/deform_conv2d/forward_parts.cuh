// Blocks that share a tile's K add up their sums by themselves, each a piece of the tile: for forward_ring.cuh.
#pragma once

#include "cuda/mma.h"
#include "deform_conv2d/forward_plan.h"

namespace centermask::deform_forward {
namespace {

// A tile has kPieces pieces, each with as many positions, and parts of K take turns to own them. Every block first
// leaves the pieces of others in the workspace and counts, then its own. Whoever finds that a piece waits for nothing
// but itself adds it up, from what the others have left and its own registers, IN THE ORDER OF THE PARTS: which block
// that is differs from run to run, what comes out does not. Blocks that end together so share the work, and nobody ever
// waits for another block.
//
// Returns the pieces (bits) that are this block's to write: `sums` has their totals, and of others something. For
// kThreads threads, `thread` of them; Threads::wait() is their barrier. `partial` and `counters` (kPieces, zeros at
// first) are those of the tile; `counts`: kPieces numbers, and `memory`: kBytes, in shared memory, which are not
// otherwise used from the first barrier on.
template <int kThreads, int kBytes, class Threads, int kTilesN, int kTilesM>
__device__ __forceinline__ unsigned add_parts(float4* partial, std::int32_t* counters, int parts, int mine, int thread,
                                              int* counts, unsigned char* memory, float (&sums)[kTilesN][kTilesM][4]) {
  constexpr int kOfPiece = kTilesM / kPieces, kSlots = kTilesN * kOfPiece;  // slots: vectors of a thread, of a piece
  constexpr int kAtOnce = kBytes / (kThreads * kSlots * 16) - 1;            // other parts in shared memory together
  static_assert(kTilesM % kPieces == 0 && kAtOnce >= 1, "pieces are of whole tiles, and fit");
  constexpr unsigned kAll = (1u << kPieces) - 1;
  float4* const left_here = partial + thread;  // [part][piece][slot][thread]
  float4* const held = reinterpret_cast<float4*>(memory) + thread;
  const auto sum = [&](int piece, int slot) -> float (&)[4] {
    return sums[slot / kOfPiece][piece * kOfPiece + slot % kOfPiece];
  };

  unsigned own = 0, left = 0, ready = 0;
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) own |= piece % parts == mine ? 1u << piece : 0u;
  // Counts the pieces that have been left, and finds out for which of the others this block is the last.
  const auto count = [&](unsigned pieces) {
    if (thread < kPieces) counts[thread] = atomicAdd(counters + thread, static_cast<int>(pieces >> thread & 1u));
    Threads::wait();
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if (counts[piece] == parts - 1 && (left >> piece & 1u) == 0) ready |= 1u << piece;
    }
    left |= pieces;
  };
  count(0);
#pragma unroll 1  // code that runs once waits for itself
  for (int round = 0; round < 2; ++round) {
    const unsigned pieces = (round == 0 ? kAll & ~own : own) & ~ready;
    if (pieces == 0) continue;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if ((pieces >> piece & 1u) == 0) continue;
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const float (&value)[4] = sum(piece, slot);
        left_here[((mine * kPieces + piece) * kSlots + slot) * kThreads] =
            make_float4(value[0], value[1], value[2], value[3]);
      }
    }
    // Here and below it must order everything that anybody does (fence.sc): the thread that counts is another than
    // those that have left something, so that its atomic, or a fence of release and acquire in each, would not pair.
    __threadfence();
    Threads::wait();  // and everybody has read the counts
    count(pieces);
  }
  __threadfence();

  // A thread reads what the threads of its number have left, and nothing else, so that it needs no barrier here.
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    if ((ready >> piece & 1u) == 0) continue;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      float (&value)[4] = sum(piece, slot);
      held[slot * kThreads] = make_float4(value[0], value[1], value[2], value[3]);
      value[0] = value[1] = value[2] = value[3] = -0.0f;  // what changes nothing when added
    }
    int other = 0, place = 0;  // the next other part, and where the one after it goes
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      if (part != mine && other <= part) {
        place = 0;
#pragma unroll 1
        for (other = part; other < parts && place < kAtOnce; ++other) {
          if (other == mine) continue;
          ++place;
#pragma unroll
          for (int slot = 0; slot < kSlots; ++slot) {
            cuda::cp_async_16(held + (place * kSlots + slot) * kThreads,
                              left_here + ((other * kPieces + piece) * kSlots + slot) * kThreads);
          }
        }
        cuda::cp_async_commit();
        cuda::cp_async_wait<0>();
        place = 0;
      }
      const float4* const from = held + (part == mine ? 0 : ++place) * (kSlots * kThreads);
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const float4 added = from[slot * kThreads];
        float (&value)[4] = sum(piece, slot);
        value[0] += added.x, value[1] += added.y, value[2] += added.z, value[3] += added.w;
      }
    }
  }
  return ready;
}

}  // namespace
}  // namespace centermask::deform_forward
