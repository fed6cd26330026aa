// Forward on the CPU: plans the tiles and runs the kernels of the instruction set in use.
#include <cstring>
#include <type_traits>

#include "deform_conv2d/driver.h"
#include "deform_conv2d/kernels.h"

namespace centermask {

namespace deform {
namespace {

bool processor_has_bf16() {
#if defined(CENTERMASK_HAVE_AVX512BF16)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

// Products come in pairs of channels.
bool uses_bf16(Isa isa, const DeformConv2dShape& s) {
  return s.params.allow_bf16 && isa == Isa::kAvx512 && s.dtype == DType::kFloat32 &&
         s.in_channels / s.params.groups % 2 == 0 && processor_has_bf16();
}

const ForwardKernels& kernels_for(Isa isa, const DeformConv2dShape& s) {
  const int which = s.dtype == DType::kFloat64 ? 1 : 0;
#if defined(CENTERMASK_HAVE_AVX512BF16)
  if (uses_bf16(isa, s)) return forward_kernels_avx512bf16[0];
#endif
  switch (isa) {
#if defined(CENTERMASK_HAVE_AVX512)
    case Isa::kAvx512: return forward_kernels_avx512[which];
#endif
#if defined(CENTERMASK_HAVE_AVX2)
    case Isa::kAvx2: return forward_kernels_avx2[which];
#endif
    default: return forward_kernels_baseline[which];
  }
}

// Rows of a tile: such that the slowest thread has as little to do as possible, and the sums stay in the L2 cache.
std::int64_t choose_tile_rows(std::int64_t positions, std::int64_t block_rows, std::int64_t row_bytes, int threads) {
  std::int64_t most = (std::int64_t{288} << 10) / row_bytes;
  most = most < 72 ? 72 : most > 288 ? 288 : most;
  std::int64_t best = 0, best_cost = 0;
  for (std::int64_t rows = align_up(72, block_rows); best == 0 || rows <= most; rows += block_rows) {
    const std::int64_t rounds = divide_up(divide_up(positions, rows), threads);
    // A round costs its rows, and what is once for each tile some more: bringing the weights through the caches, and
    // the first panel.
    const std::int64_t cost = rounds * (align_up(rows < positions ? rows : positions, block_rows) + 6);
    if (best == 0 || cost < best_cost) best = rows, best_cost = cost;
  }
  return best;
}

// The order of columns follows from weight and groups alone: packed weights serve every x and offset.
ForwardPlan make_weight_plan(const DeformConv2dShape& s) {
  ForwardPlan plan{};
  plan.shape = s;
  plan.chunk_taps = divide_up(s.taps(), divide_up(s.taps(), 32));
  const std::int64_t item = dtype_size(s.dtype), group_in = s.in_channels / s.params.groups;
  // Some 2 KB of columns, yet whole vectors of channels.
  std::int64_t most = 2304 / item / plan.chunk_taps / 16 * 16;
  if (most < 128 / item) most = 128 / item;
  const std::int64_t chunks = (group_in + most / 2 - 1) / most;
  plan.chunk_channels = align_up(divide_up(group_in, chunks < 1 ? 1 : chunks), 16);
  if (plan.chunk_channels > group_in) plan.chunk_channels = group_in;
  return plan;
}

ForwardPlan make_plan(const DeformConv2dShape& s, const ForwardKernels& kernels, int threads) {
  const BlockSizes& block = kernels.block;
  ForwardPlan plan = make_weight_plan(s);
  plan.pixel_stride = s.in_channels < 16 ? s.in_channels : align_up(s.in_channels, 16);
  plan.image_stride = (1 + s.height * s.width) * plan.pixel_stride;
  // Of a batch as many images as the L2 caches hold.
  const std::int64_t image_bytes = plan.image_stride * dtype_size(s.dtype);
  plan.images_at_once = (std::int64_t{768} << 10) * threads / image_bytes;
  if (plan.images_at_once < 1) plan.images_at_once = 1;
  if (plan.images_at_once > s.batch) plan.images_at_once = s.batch;
  // Room for the last whole vector; an odd number of cache lines, so that rows spread over the sets of the caches.
  const std::int64_t line = 64 / kernels.panel_item;
  plan.panel_stride = align_up(plan.chunk_taps * plan.chunk_channels + block.lanes, line);
  if (plan.panel_stride / line % 2 == 0) plan.panel_stride += line;
  // Two, in turn. Where a chunk belongs to several offset groups, corners are found for each: of more rows together.
  plan.panels = s.offset_groups == 1 ? 2 : divide_up(96, block.rows);
  plan.slab = align_up(s.out_channels / s.params.groups, block.columns);
  const std::int64_t most = align_up(8192 / dtype_size(s.dtype), block.columns);
  if (plan.slab > most) plan.slab = most;
  plan.tile_rows =
      choose_tile_rows(plan.images_at_once * s.out_pixels(), block.rows, plan.slab * dtype_size(s.dtype), threads);
  return plan;
}

std::int64_t packed_bytes(const DeformConv2dShape& s, const ForwardKernels& kernels) {
  const std::int64_t group_out = s.out_channels / s.params.groups;
  return align_up(group_out, kernels.block.columns) * s.in_channels * s.taps() * kernels.panel_item;
}

void pack(const DeformConv2dShape& s, const TensorView& weight, const ForwardKernels& kernels, void* packed,
          const ParallelFor& parallel_for) {
  const ForwardPlan plan = make_weight_plan(s);
  const std::int64_t blocks = divide_up(s.out_channels / s.params.groups, kernels.block.columns);
  const std::int64_t block_bytes =
      s.in_channels / s.params.groups * s.taps() * kernels.block.columns * kernels.panel_item;
  parallel_for(s.params.groups * blocks, [&](std::int64_t i) {
    kernels.pack_weight(plan, weight, i / blocks, i % blocks, static_cast<char*>(packed) + i * block_bytes);
  });
}

struct Memory {
  void* pixels;
  void* packed;
  void* scratch;
  std::int64_t scratch_bytes;  // of one thread
};

std::size_t lay_out(Layout layout, const ForwardPlan& plan, const ForwardKernels& kernels, int threads, bool packed,
                    Memory& memory) {
  const std::int64_t item = dtype_size(plan.shape.dtype);
  memory.pixels = layout.take(plan.images_at_once * plan.image_stride * item);
  memory.packed = packed ? nullptr : layout.take(packed_bytes(plan.shape, kernels));
  memory.scratch_bytes = align_up(kernels.scratch_bytes(plan), 64) + 64;
  memory.scratch = layout.take(memory.scratch_bytes * threads);
  return layout.bytes();
}

// Packed weights begin with this, so that they are not used with another shape or instruction set.
struct alignas(64) PackedHeader {
  std::int64_t isa, dtype, out_channels, in_channels, kernel_h, kernel_w, groups;
  std::int64_t bf16;
};
static_assert(std::has_unique_object_representations_v<PackedHeader>, "headers are compared byte by byte");

PackedHeader header_of(const TensorView& weight, const DeformConv2dParams& params, Isa isa, bool bf16) {
  PackedHeader header{};
  header.isa = static_cast<std::int64_t>(isa);
  header.dtype = static_cast<std::int64_t>(weight.dtype);
  header.out_channels = weight.shape[0], header.in_channels = weight.shape[1] * params.groups;
  header.kernel_h = weight.shape[2], header.kernel_w = weight.shape[3];
  header.groups = params.groups;
  header.bf16 = bf16 ? 1 : 0;
  return header;
}

// The shape, as far as the weight alone gives it.
DeformConv2dShape weight_shape(const TensorView& weight, const DeformConv2dParams& params) {
  check_cpu(weight, "weight");
  if (weight.rank != 4 || weight.size() < 1) {
    fail(ErrorKind::kValue, "deform_conv2d: weight must be [out channels, C/groups, kh, kw], got ", shape_text(weight));
  }
  if (weight.dtype != DType::kFloat32 && weight.dtype != DType::kFloat64) {
    fail(ErrorKind::kType, "deform_conv2d: weight must be float32 or float64 on the CPU, got ",
         dtype_name(weight.dtype));
  }
  if (params.groups < 1 || weight.shape[0] % params.groups != 0) {
    fail(ErrorKind::kValue, "deform_conv2d: groups=", params.groups, " must divide the out channels of weight ",
         shape_text(weight));
  }
  DeformConv2dShape s;
  s.dtype = weight.dtype;
  s.params = params;
  s.out_channels = weight.shape[0], s.in_channels = weight.shape[1] * params.groups;
  s.kernel_h = weight.shape[2], s.kernel_w = weight.shape[3];
  return s;
}

void check_type(const DeformConv2dShape& s) {
  if (s.dtype != DType::kFloat32 && s.dtype != DType::kFloat64) {
    fail(ErrorKind::kType, "deform_conv2d: x must be float32 or float64 on the CPU, got ", dtype_name(s.dtype));
  }
}

}  // namespace
}  // namespace deform

using namespace deform;

bool deform_conv2d_uses_bf16_cpu(const TensorView& weight, const DeformConv2dParams& params) {
  return uses_bf16(isa_used(), weight_shape(weight, params));
}

std::size_t deform_conv2d_packed_bytes_cpu(const TensorView& weight, const DeformConv2dParams& params) {
  const DeformConv2dShape s = weight_shape(weight, params);
  const ForwardKernels& kernels = kernels_for(isa_used(), s);
  return sizeof(PackedHeader) + static_cast<std::size_t>(packed_bytes(s, kernels));
}

void deform_conv2d_pack_cpu(const TensorView& weight, const DeformConv2dParams& params, void* packed,
                            const ParallelFor& parallel_for) {
  const DeformConv2dShape s = weight_shape(weight, params);
  const Isa isa = isa_used();
  const PackedHeader header = header_of(weight, params, isa, uses_bf16(isa, s));
  std::memcpy(packed, &header, sizeof header);
  pack(s, weight, kernels_for(isa, s), static_cast<char*>(packed) + sizeof header, parallel_for);
}

std::size_t deform_conv2d_workspace_cpu(const DeformConv2dShape& shape, int threads, bool packed) {
  check_type(shape);
  const ForwardKernels& kernels = kernels_for(isa_used(), shape);
  Memory memory;
  return lay_out(Layout(), make_plan(shape, kernels, threads), kernels, threads, packed, memory);
}

void deform_conv2d_cpu(const TensorView& x, const TensorView& weight, const void* packed, const TensorView& offset,
                       const TensorView& mask, const TensorView& bias, const DeformConv2dParams& params,
                       const Workspace& workspace, const TensorView& output, const ParallelFor& parallel_for) {
  const DeformConv2dShape s = deform_conv2d_shape(x, weight, offset, mask, bias, params);
  check_cpu(x, "x");
  check_type(s);
  if (output.rank != 4 || output.shape[0] != s.batch || output.shape[1] != s.out_channels ||
      output.shape[2] != s.out_height || output.shape[3] != s.out_width || !output.contiguous() ||
      output.dtype != s.dtype || output.device != x.device) {
    fail(ErrorKind::kValue, "deform_conv2d: output must be row-major ", dtype_name(s.dtype), " [", s.batch, ", ",
         s.out_channels, ", ", s.out_height, ", ", s.out_width, "], got ", dtype_name(output.dtype), " ",
         shape_text(output));
  }
  if (s.batch == 0) return;

  const Isa isa = isa_used();
  const int threads = parallel_for.threads;
  const ForwardKernels& kernels = kernels_for(isa, s);
  if (packed != nullptr) {
    const PackedHeader expected = header_of(weight, params, isa, uses_bf16(isa, s));
    if (std::memcmp(packed, &expected, sizeof expected) != 0) {
      fail(ErrorKind::kValue,
           "deform_conv2d: the packed weight was made for another shape, precision or instruction set (", isa_name(isa),
           " is in use)");
    }
    packed = static_cast<const char*>(packed) + sizeof expected;
  }

  ForwardArguments arguments{
      make_plan(s, kernels, threads), x, weight, offset, mask, bias, output, 0, nullptr, nullptr};
  const ForwardPlan& plan = arguments.plan;
  Memory memory;
  check_workspace(workspace, lay_out(Layout(), plan, kernels, threads, packed != nullptr, memory));
  lay_out(Layout(workspace.data), plan, kernels, threads, packed != nullptr, memory);
  arguments.pixels = memory.pixels;
  arguments.packed = packed != nullptr ? packed : memory.packed;

  if (packed == nullptr) pack(s, weight, kernels, memory.packed, parallel_for);
  // About 64 KB of x at a time.
  const std::int64_t rows = divide_up(16384, s.in_channels * s.width);
  const std::int64_t strips = divide_up(s.height, rows);
  for (std::int64_t image = 0; image < s.batch; image += plan.images_at_once) {
    const std::int64_t images = image + plan.images_at_once < s.batch ? plan.images_at_once : s.batch - image;
    arguments.first_image = image;
    for_each_with_slot(parallel_for, images * strips, [&](std::int64_t i, std::int64_t) {
      const std::int64_t row = i % strips * rows;
      kernels.copy_rows(arguments, image + i / strips, row, row + rows < s.height ? row + rows : s.height);
    });
    const std::int64_t begin = image * s.out_pixels(), positions = images * s.out_pixels();
    for_each_with_slot(parallel_for, divide_up(positions, plan.tile_rows), [&](std::int64_t i, std::int64_t slot) {
      const std::int64_t first = i * plan.tile_rows;
      kernels.tile(arguments, begin + first, first + plan.tile_rows < positions ? plan.tile_rows : positions - first,
                   static_cast<char*>(memory.scratch) + slot * memory.scratch_bytes);
    });
  }
}

}  // namespace centermask
