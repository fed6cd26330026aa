// Which kernel and which tiles a forward call on CUDA takes, and what lies where in its workspace. For forward_cuda.cu.
#pragma once

#include <numeric>

#include "cuda/runtime.h"
#include "cuda/wgmma.h"
#include "deform_conv2d/forward_plan.h"

namespace centermask::deform_forward {
namespace {

constexpr const char* kOp = "deform_conv2d";
constexpr std::int64_t kAlign = 256;
constexpr std::int64_t kMaxInt = (std::int64_t{1} << 31) - 1;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t align_up(std::int64_t a, std::int64_t step) { return divide_up(a, step) * step; }

constexpr int kMostTableTaps = 9;  // more would leave no room for the L1 cache

constexpr TileConfig kWide = {128, 256, 2, 4, 1, 0}, kWideSmall = {64, 256, 2, 4, 1, 0};
constexpr TileConfig kMiddle = {128, 128, 2, 4, 1, 0}, kNarrow = {128, 64, 4, 2, 2, 0};
constexpr TileConfig kSimtWide = {128, 128, 0, 0, 0, 0}, kSimtNarrow = {64, 64, 0, 0, 0, 0};

constexpr TileConfig kWgmmaWide = {128, 256, 1, 16, 1, 0}, kWgmmaMiddle = {128, 128, 2, 8, 1, 0};
constexpr TileConfig kWgmmaNarrow = {128, 64, 2, 4, 2, 0};
constexpr TileConfig kRingWide = {128, 256, 8, 8, 1, 3}, kRingWideHalf = {64, 256, 8, 8, 1, 4};
constexpr TileConfig kRingMiddle = {128, 128, 8, 8, 1, 4};
constexpr TileConfig kRingNarrow = {128, 64, 8, 4, 2, 2};  // more stages would take room from the L1 cache
constexpr TileConfig kRingMiddleFull = {128, 128, 8, 8, 1, 2},
                     kRingNarrowFull = {128, 64, 16, 4, 1, 3};  // in two parts

// Code for sm_90a is in the library where its build says so, and in the emulator always.
#if defined(CENTERMASK_CUDA_EMULATED) && !defined(CENTERMASK_SM90A)
#define CENTERMASK_SM90A 1
#endif

bool same(const TileConfig& a, const TileConfig& b) {
  return a.positions == b.positions && a.channels == b.channels && a.warps_m == b.warps_m && a.warps_n == b.warps_n &&
         a.stages == b.stages;
}

// Numbers of float32 in two parts.
int parts_of(Kernel kernel, bool full_precision) { return kernel == Kernel::kRing && full_precision ? 2 : 1; }

std::int64_t operand_bytes(Kernel kernel, const TileConfig& tile, bool full_precision) {
  if (kernel == Kernel::kRing) {
    return tile.stages * (tile.positions + tile.channels) * kChunkBytes * parts_of(kernel, full_precision) +
           cuda::kSwizzleAlign + kRingBarrierBytes;
  }
  if (kernel == Kernel::kWgmma) return 2 * (tile.positions + tile.channels) * kChunkBytes + cuda::kSwizzleAlign;
  if (kernel == Kernel::kMma) return 2 * (tile.positions + tile.channels) * kChunkBytes;
  return (tile.positions + 4 + tile.channels) * 32 * static_cast<std::int64_t>(sizeof(float));
}

// Can x be read as it is: 16-byte vectors of channels that begin on 16 bytes? The stride of a dimension of one element
// says nothing: PyTorch leaves any number there.
bool vectors_in_place(const TensorView& x, std::int64_t segment_channels) {
  const std::int64_t elements = kVectorBytes / dtype_size(x.dtype);
  bool fits = x.stride[1] == 1 && segment_channels % elements == 0 &&
              reinterpret_cast<std::uintptr_t>(x.data) % kVectorBytes == 0;
  for (int i : {0, 2, 3}) {
    if (x.shape[i] == 1) continue;
    fits = fits && x.stride[i] >= 0 && x.stride[i] % elements == 0;
    if (i != 0) fits = fits && x.stride[i] / elements <= kMaxInt;
  }
  return fits;
}

// For more than 128 out channels. Half the tile needs half as many parts of K. Its steps take a third longer, for the
// same work, but to begin, to add the parts and to write took 9 us less (H100, 512 or 2048 -> 256 of 16 x 16 at batch
// 16, 32 wide tiles, 72 or 288 steps): where tiles are that few, it is faster up to about 80 steps.
const TileConfig& choose_wide(const Arguments& a, int multiprocessors) {
  const std::int64_t wide_tiles =
      divide_up(a.positions, kRingWide.positions) * a.groups * divide_up(a.group_out, kRingWide.channels);
  return 4 * wide_tiles <= multiprocessors && a.steps <= 80 ? kRingWideHalf : kRingWide;
}

void plan_tiles(Plan& plan, int multiprocessors, std::int64_t shared_limit, const Tuning& tuning) {
  const DeformConv2dShape& s = plan.shape;
  Arguments& a = plan.arguments;
  const TileConfig& tile = plan.tile;
  a.out_blocks = static_cast<std::int32_t>(divide_up(a.group_out, tile.channels));

  // Patches of an image keep the pixels of a tile together; runs waste nothing at the borders.
  const std::int64_t runs = divide_up(a.positions, tile.positions);
  a.patch_log2 = 4, a.patch_w = 16, a.patch_h = tile.positions / a.patch_w;
  a.patches_x = static_cast<std::int32_t>(divide_up(s.out_width, a.patch_w));
  a.patches_y = static_cast<std::int32_t>(divide_up(s.out_height, a.patch_h));
  a.tiles = s.batch * a.patches_x * a.patches_y;
  const bool patches = tuning.patches >= 0 ? tuning.patches != 0 : a.tiles * 16 <= runs * 17;
  if (!patches) a.patch_w = 0, a.tiles = runs;

  const std::int64_t operands = operand_bytes(plan.kernel, tile, plan.full_precision),
                     per_tap = tile.positions * (plan.kernel == Kernel::kRing ? kRingPlaceBytes : kPlaceBytes);
  std::int64_t table_taps = (shared_limit - operands) / per_tap;
  if (table_taps > kMostTableTaps) table_taps = kMostTableTaps;
  if (table_taps > a.taps) table_taps = a.taps;
  a.table_taps = static_cast<std::int32_t>(table_taps);
  plan.shared_bytes = operands + table_taps * per_tap;

  // Where there are too few tiles to fill the card, blocks share the work along K.
  const std::int64_t blocks = a.tiles * a.groups * a.out_blocks;
  std::int64_t splits = blocks == 0 ? 1 : multiprocessors * (tile.blocks_per_sm > 1 ? 2 : 1) / blocks;
  if (splits > a.steps / 6) splits = a.steps / 6;
  if (splits > 64) splits = 64;
  if (tuning.splits > 0) splits = tuning.splits < a.steps ? tuning.splits : a.steps;
  if (static_cast<std::int64_t>(a.groups) * a.out_blocks * tile.channels > 65535 * 32) splits = 1;  // the sum's grid
  a.splits = static_cast<std::int32_t>(splits < 1 ? 1 : splits);
  // More parts than kMostPartsAdded are read faster by a kernel that has the whole card for it.
  if (plan.kernel == Kernel::kRing && a.splits > 1 && a.splits <= kMostPartsAdded && tuning.adds) {
    plan.counter_bytes = static_cast<std::int64_t>(sizeof(std::int32_t)) * kPieces * blocks;
  }
  if (a.splits > 1) {
    plan.partial_bytes = a.splits * a.tiles * tile.positions * a.groups * a.out_blocks * tile.channels *
                         static_cast<std::int64_t>(sizeof(float));
  }
  if (blocks > kMaxInt || a.steps > kMaxInt) fail(ErrorKind::kUnsupported, kOp, ": too large for one launch");
}

Plan make_plan(const TensorView& x, const TensorView& weight, const TensorView& offset, const TensorView& mask,
               const TensorView& bias, const DeformConv2dParams& params, const Tuning& tuning) {
  Plan plan;
  plan.study = tuning.study, plan.kernels = tuning.kernels;
  plan.early = tuning.early, plan.early_packing = tuning.early_packing;
  plan.shape = deform_conv2d_shape(x, weight, offset, mask, bias, params);
  const DeformConv2dShape& s = plan.shape;
  if (x.device.type != DeviceType::kCuda) fail(ErrorKind::kValue, kOp, ": x must be on a CUDA device");
  const CudaStream device{nullptr, x.device.index};
  const cuda::CodeFeatures code = cuda::code_features(kOp, device);
  const std::int64_t shared_limit = cuda::device_attribute(kOp, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int multiprocessors = cuda::device_attribute(kOp, cudaDevAttrMultiProcessorCount, device);

  Arguments& a = plan.arguments;
  const std::int64_t item = dtype_size(s.dtype), elements = kVectorBytes / item;
  const std::int64_t group_in = s.in_channels / params.groups, offset_in = s.in_channels / s.offset_groups;
  const std::int64_t segment = std::gcd(group_in, offset_in);
  a.segment_channels = static_cast<std::int32_t>(segment);
  a.segment_vectors = static_cast<std::int32_t>(divide_up(segment, elements));
  a.segments = static_cast<std::int32_t>(group_in / segment);
  a.segments_of_offset_group = static_cast<std::int32_t>(offset_in / segment);
  a.chunks = static_cast<std::int32_t>(divide_up(a.segment_vectors, kChunkVectors));
  a.groups = static_cast<std::int32_t>(params.groups);
  a.group_out = static_cast<std::int32_t>(s.out_channels / params.groups);
  a.taps = static_cast<std::int32_t>(s.taps());
  a.kernel_w = static_cast<std::int32_t>(s.kernel_w);
  a.steps = static_cast<std::int64_t>(a.segments) * a.chunks * a.taps;
  for (int i = 0; i < 2; ++i) {
    a.stride[i] = static_cast<std::int32_t>(params.stride[i]);
    a.padding[i] = static_cast<std::int32_t>(params.padding[i]);
    a.dilation[i] = static_cast<std::int32_t>(params.dilation[i]);
  }
  a.height = static_cast<std::int32_t>(s.height), a.width = static_cast<std::int32_t>(s.width);
  a.out_height = static_cast<std::int32_t>(s.out_height), a.out_width = static_cast<std::int32_t>(s.out_width);
  a.positions = s.batch * s.out_pixels();
  a.relu = params.activation == Activation::kRelu ? 1 : 0;
  a.places_in_float = offset.dtype == DType::kFloat32 ? 1 : 0;
  for (int i = 0; i < 4; ++i) {
    a.offset_stride[i] = offset.stride[i];
    a.mask_stride[i] = mask.present() ? mask.stride[i] : 0;
  }

  plan.copy_x = !vectors_in_place(x, segment);
  const std::int64_t pixel = s.in_channels / segment * a.segment_vectors;  // in vectors
  plan.zero_bytes = pixel * kVectorBytes;
  if (plan.copy_x) plan.x_bytes = s.batch * s.height * s.width * pixel * kVectorBytes;
  std::int64_t strides[4] = {s.height * s.width * pixel, 0, s.width * pixel, pixel};
  if (!plan.copy_x) {
    for (int i : {0, 2, 3}) strides[i] = x.shape[i] == 1 ? 0 : x.stride[i] / elements;
  }
  if ((s.batch - 1) * strides[0] + (s.height - 1) * strides[2] + s.width * strides[3] > kMaxInt ||
      strides[2] > kMaxInt) {
    fail(ErrorKind::kUnsupported, kOp, ": x must have less than 32 GiB on CUDA, got ", shape_text(x));
  }
  a.x_image = strides[0];
  a.x_row = static_cast<std::int32_t>(strides[2]), a.x_pixel = static_cast<std::int32_t>(strides[3]);

  plan.full_precision = s.dtype == DType::kFloat32 && !params.allow_tf32;
  plan.kernel = code.capability >= 80 && !tuning.simt ? Kernel::kMma : Kernel::kSimt;
#if defined(CENTERMASK_SM90A)
  if (code.sm90a && plan.kernel == Kernel::kMma && tuning.wgmma) {
    if (tuning.ring && a.segments == 1 && a.taps <= kMostTableTaps && a.x_row <= kMaxInt / kVectorBytes &&
        a.x_pixel <= kMaxInt / kVectorBytes && pixel <= kMaxInt / kVectorBytes) {
      plan.kernel = Kernel::kRing;
    } else if (!plan.full_precision) {
      plan.kernel = Kernel::kWgmma;
    }
  }
#endif
  const bool wide_fits = shared_limit >= operand_bytes(Kernel::kMma, kWide, false) + 9 * 128 * kPlaceBytes;
  if (plan.kernel == Kernel::kSimt) {
    plan.tile = a.group_out <= 64 || a.positions < 128 * multiprocessors ? kSimtNarrow : kSimtWide;
  } else if (plan.kernel == Kernel::kRing) {
    if (plan.full_precision) {
      plan.tile = a.group_out <= 64 ? kRingNarrowFull : kRingMiddleFull;
    } else {
      plan.tile = a.group_out <= 64 ? kRingNarrow : a.group_out <= 128 ? kRingMiddle : choose_wide(a, multiprocessors);
    }
  } else if (plan.kernel == Kernel::kWgmma) {
    plan.tile = a.group_out <= 64 ? kWgmmaNarrow : a.group_out <= 128 ? kWgmmaMiddle : kWgmmaWide;
  } else if (a.group_out <= 64) {
    plan.tile = kNarrow;
  } else if (a.group_out <= 128) {
    plan.tile = kMiddle;
  } else {
    // Code for sm_90 and later would need more registers for the wide tile than there are.
    plan.tile = wide_fits && !plan.full_precision && code.capability < 90 ? kWide : kWideSmall;
  }
  if (plan.kernel != Kernel::kSimt && tuning.tile.positions > 0) plan.tile = tuning.tile;
  plan_tiles(plan, multiprocessors, shared_limit, tuning);
  plan.packed_bytes = a.groups * a.out_blocks * a.steps * plan.tile.channels * kChunkVectors * kVectorBytes *
                      parts_of(plan.kernel, plan.full_precision);
  return plan;
}

std::size_t workspace_bytes(const Plan& plan) {
  return static_cast<std::size_t>(align_up(plan.x_bytes, kAlign) + align_up(plan.packed_bytes, kAlign) +
                                  align_up(plan.zero_bytes + plan.counter_bytes, kAlign) +
                                  align_up(plan.partial_bytes, kAlign));
}

}  // namespace
}  // namespace centermask::deform_forward
