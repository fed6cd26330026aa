// The plan of a forward call on CUDA: which kernel, which tiles, what lies where in the workspace. Plain C++, also
// passed to the kernels by value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "centermask/deform_conv2d.h"
#include "cuda/runtime.h"

namespace centermask::deform_forward {

// K of the matrix product is walked in steps of one tap and one chunk of kChunkVectors 16-byte vectors of channels.
// A segment is a run of channels that lie in one group and one offset group; x is (or is brought) channels-last, with
// each segment beginning on a vector.
constexpr int kVectorBytes = 16;
constexpr int kChunkVectors = 8;
constexpr int kChunkBytes = kVectorBytes * kChunkVectors;
// What the table of sampling places holds for a tap and a position: four weights, an index and flags.
constexpr int kPlaceBytes = 24;
constexpr int kRingPlaceBytes = 32;  // of kRing's
// For the barriers of kRing, and the counts of forward_parts.cuh.
constexpr int kRingBarrierBytes = 128;
// Blocks of kRing that share a tile's K add up their sums by themselves: that many pieces, at most that many blocks.
constexpr int kPieces = 4, kMostPartsAdded = 8;

// An output tile is `positions` x `channels`. Warps divide it, warps_m x warps_n; blocks_per_sm bounds the registers.
// kRing: warps_m sample and warps_n multiply, with so many stages of operands between them.
struct TileConfig {
  int positions, channels, warps_m, warps_n, blocks_per_sm, stages;
};

enum class Kernel : std::uint8_t { kRing, kWgmma, kMma, kSimt };

// What the kernels take.
struct Arguments {
  const void* x;  // channels-last; the strides count vectors
  std::int64_t x_image;
  std::int32_t x_row, x_pixel;
  const uint4* zeros;  // as many vectors as a pixel of x has
  const void* packed;  // the weights: [group][block of out channels][step of K][tile in the kernel's order]
  const void* offset;
  const void* mask;
  std::int64_t offset_stride[4], mask_stride[4];
  std::int32_t places_in_float;  // offset and mask are float32, not T
  const void* bias;
  std::int64_t bias_stride;
  void* output;
  std::int64_t output_stride[4];
  std::int32_t channels_last_out;  // output's channels follow each other
  std::int32_t vectors_out;        // whole vectors of positions, or of channels, can be written
  float* partial;                  // with splits > 1: [split][tile][positions][groups * out_blocks * channels]
  // [tile, block of out channels][piece]: kRing counts here which parts have come, and adds them up by itself;
  // `partial` is [tile, block of out channels][split] in the order of the kernel's registers then. Otherwise null, and
  // another kernel adds.
  std::int32_t* counters;
  std::int32_t relu;

  std::int64_t positions;  // N * Ho * Wo
  std::int32_t height, width, out_height, out_width;
  std::int32_t taps, kernel_w;
  std::int32_t stride[2], padding[2], dilation[2];
  // A tile is a patch of patch_w (1 << patch_log2) columns of one image, or, where patch_w is 0, a run of positions
  // counted through the whole batch.
  std::int32_t patch_log2, patch_w, patch_h, patches_x, patches_y;

  std::int32_t group_out;   // out channels of a group
  std::int32_t out_blocks;  // tiles along them
  std::int32_t groups;
  std::int32_t segments;  // of a group
  std::int32_t segment_channels, segment_vectors;
  std::int32_t segments_of_offset_group;
  std::int32_t chunks;      // of a segment
  std::int32_t table_taps;  // taps whose places are in shared memory together
  std::int32_t splits;      // parts of K, computed by different blocks and then summed in order
  std::int64_t tiles;       // of positions
  std::int64_t steps;       // of K
};

// What a kernel leaves out or does otherwise, to see where its time goes; in builds with CENTERMASK_TUNING, float16.
enum class Study : std::uint8_t {
  kNone,
  kHalfBlend,  // samples blended in half precision
  kNoBlend,    // one exclusive or in place of the interpolation
  kNoGather,   // every neighbour is the same vector
  kNoProduct
};
constexpr int kPrepare = 1, kProduct = 2, kSum = 4;  // kernels of a call

// Instead of what the plan would choose; for benchmarks/cpp/deform_conv2d_tiles.cu.
struct Tuning {
  TileConfig tile{0, 0, 0, 0, 0, 0};  // one of those compiled; 0 positions: chosen
  int splits = 0;                     // 0: chosen
  int patches = -1;                   // 0: runs of positions, 1: patches, -1: chosen
  bool simt = false;                  // no tensor cores
  bool wgmma = true;                  // where it can be had
  bool ring = true;                   // likewise; otherwise every warp samples and multiplies
  bool early = true;                  // kernels may begin before those before them have ended
  bool early_packing = false;         // so may the first, before a kernel that is not of the call
  bool adds = true;                   // kRing adds up a few parts by itself
  Study study = Study::kNone;
  int kernels = kPrepare | kProduct | kSum;  // those to launch
};

struct Plan {
  DeformConv2dShape shape;
  Kernel kernel = Kernel::kSimt;
  TileConfig tile{};
  bool copy_x = false;
  bool full_precision = false;  // float32 that is not to be rounded to tf32
  Study study = Study::kNone;
  int kernels = kPrepare | kProduct | kSum;
  bool early = true, early_packing = false;
  Arguments arguments{};  // without the pointers
  std::int64_t shared_bytes = 0;
  // Parts of the workspace, 0 bytes where they are not needed.
  std::int64_t x_bytes = 0, packed_bytes = 0, zero_bytes = 0, counter_bytes = 0, partial_bytes = 0;
};

std::size_t workspace_tuned(const TensorView& x, const TensorView& weight, const TensorView& offset,
                            const TensorView& mask, const DeformConv2dParams& params, const Tuning& tuning);
void forward_tuned(const TensorView& x, const TensorView& weight, const TensorView& offset, const TensorView& mask,
                   const TensorView& bias, const DeformConv2dParams& params, const Workspace& workspace,
                   const TensorView& output, const CudaStream& stream, const Tuning& tuning);

}  // namespace centermask::deform_forward
