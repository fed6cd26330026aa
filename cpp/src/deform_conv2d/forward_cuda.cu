// Forward on CUDA: plans the tiles, prepares the operands in the workspace and launches the kernels. docs/cuda.md has
// the reasons for the choices.
#include <numeric>

#include "cuda/runtime.h"
#include "deform_conv2d/forward_mma.cuh"
#include "deform_conv2d/forward_plan.h"
#include "deform_conv2d/forward_prepare.cuh"
#include "deform_conv2d/forward_simt.cuh"
#include "deform_conv2d/forward_wgmma.cuh"

namespace centermask {

namespace deform_forward {
namespace {

constexpr const char* kOp = "deform_conv2d";
constexpr std::int64_t kAlign = 256;
constexpr std::int64_t kMaxInt = (std::int64_t{1} << 31) - 1;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t align_up(std::int64_t a, std::int64_t step) { return divide_up(a, step) * step; }

// ---- plan ----

constexpr TileConfig kWide = {128, 256, 2, 4, 1}, kWideSmall = {64, 256, 2, 4, 1};
constexpr TileConfig kMiddle = {128, 128, 2, 4, 1}, kNarrow = {128, 64, 4, 2, 2};
constexpr TileConfig kSimtWide = {128, 128, 0, 0, 0}, kSimtNarrow = {64, 64, 0, 0, 0};

constexpr TileConfig kWgmmaWide = {128, 256, 1, 16, 1}, kWgmmaMiddle = {128, 128, 1, 8, 2};
constexpr TileConfig kWgmmaNarrow = {128, 64, 1, 4, 3};

// Code for sm_90a is in the library where its build says so, and in the emulator always.
#if defined(CENTERMASK_CUDA_EMULATED) && !defined(CENTERMASK_SM90A)
#define CENTERMASK_SM90A 1
#endif

bool same(const TileConfig& a, const TileConfig& b) {
  return a.positions == b.positions && a.channels == b.channels && a.warps_m == b.warps_m && a.warps_n == b.warps_n;
}

std::int64_t operand_bytes(Kernel kernel, const TileConfig& tile) {
  if (kernel == Kernel::kWgmma) return 2 * (tile.positions + tile.channels) * kChunkBytes + cuda::kSwizzleAlign;
  if (kernel == Kernel::kMma) return 2 * (tile.positions + tile.channels) * kChunkBytes;
  return (tile.positions + 4 + tile.channels) * 32 * static_cast<std::int64_t>(sizeof(float));
}

// Can x be read as it is: 16-byte vectors of channels that begin on 16 bytes?
bool vectors_in_place(const TensorView& x, std::int64_t segment_channels) {
  const std::int64_t elements = kVectorBytes / dtype_size(x.dtype);
  bool fits = x.stride[1] == 1 && segment_channels % elements == 0 &&
              reinterpret_cast<std::uintptr_t>(x.data) % kVectorBytes == 0;
  for (int i : {0, 2, 3}) {
    fits = fits && x.stride[i] >= 0 && x.stride[i] % elements == 0;
    if (i != 0) fits = fits && x.stride[i] / elements <= kMaxInt;
  }
  return fits;
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

  const std::int64_t operands = operand_bytes(plan.kernel, tile), per_tap = tile.positions * kPlaceBytes;
  std::int64_t table_taps = (shared_limit - operands) / per_tap;
  if (table_taps > 9) table_taps = 9;  // room for the L1 cache
  if (table_taps > a.taps) table_taps = a.taps;
  a.table_taps = static_cast<std::int32_t>(table_taps);
  plan.shared_bytes = operands + table_taps * per_tap;

  // Where there are too few tiles to fill the card, blocks share the work along K.
  const std::int64_t blocks = a.tiles * a.groups * a.out_blocks;
  std::int64_t splits = blocks == 0 ? 1 : multiprocessors * (tile.blocks_per_sm > 1 ? 2 : 1) / blocks;
  if (splits > a.steps / 6) splits = a.steps / 6;
  if (splits > 16) splits = 16;
  if (tuning.splits > 0) splits = tuning.splits < a.steps ? tuning.splits : a.steps;
  if (static_cast<std::int64_t>(a.groups) * a.out_blocks * tile.channels > 65535 * 32) splits = 1;  // the sum's grid
  a.splits = static_cast<std::int32_t>(splits < 1 ? 1 : splits);
  if (a.splits > 1) {
    plan.partial_bytes = a.splits * a.tiles * tile.positions * a.groups * a.out_blocks * tile.channels *
                         static_cast<std::int64_t>(sizeof(float));
  }
  if (blocks > kMaxInt || a.steps > kMaxInt) fail(ErrorKind::kUnsupported, kOp, ": too large for one launch");
}

Plan make_plan(const TensorView& x, const TensorView& weight, const TensorView& offset, const TensorView& mask,
               const TensorView& bias, const DeformConv2dParams& params, const Tuning& tuning) {
  Plan plan;
  plan.half_blend = tuning.half_blend;
  plan.shape = deform_conv2d_shape(x, weight, offset, mask, bias, params);
  const DeformConv2dShape& s = plan.shape;
  if (x.device.type != DeviceType::kCuda) fail(ErrorKind::kValue, kOp, ": x must be on a CUDA device");
  const CudaStream device{nullptr, x.device.index};
  const int capability = cuda::compute_capability(kOp, device);
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
  if (plan.copy_x) plan.x_bytes = s.batch * s.height * s.width * pixel * kVectorBytes;
  const std::int64_t strides[4] = {plan.copy_x ? s.height * s.width * pixel : x.stride[0] / elements, 0,
                                   plan.copy_x ? s.width * pixel : x.stride[2] / elements,
                                   plan.copy_x ? pixel : x.stride[3] / elements};
  if ((s.batch - 1) * strides[0] + (s.height - 1) * strides[2] + s.width * strides[3] > kMaxInt ||
      strides[2] > kMaxInt) {
    fail(ErrorKind::kUnsupported, kOp, ": x must have less than 32 GiB on CUDA, got ", shape_text(x));
  }
  a.x_image = strides[0];
  a.x_row = static_cast<std::int32_t>(strides[2]), a.x_pixel = static_cast<std::int32_t>(strides[3]);

  plan.full_precision = s.dtype == DType::kFloat32 && !params.allow_tf32;
  plan.kernel = capability >= 80 && !tuning.simt ? Kernel::kMma : Kernel::kSimt;
#if defined(CENTERMASK_SM90A)
  if (capability == 90 && plan.kernel == Kernel::kMma && !plan.full_precision && tuning.wgmma) {
    plan.kernel = Kernel::kWgmma;
  }
#endif
  const bool wide_fits = shared_limit >= operand_bytes(Kernel::kMma, kWide) + 9 * 128 * kPlaceBytes;
  if (plan.kernel == Kernel::kSimt) {
    plan.tile = a.group_out <= 64 || a.positions < 128 * multiprocessors ? kSimtNarrow : kSimtWide;
  } else if (plan.kernel == Kernel::kWgmma) {
    plan.tile = a.group_out <= 64 ? kWgmmaNarrow : a.group_out <= 128 ? kWgmmaMiddle : kWgmmaWide;
  } else if (a.group_out <= 64) {
    plan.tile = kNarrow;
  } else if (a.group_out <= 128) {
    plan.tile = kMiddle;
  } else {
    plan.tile = wide_fits && !plan.full_precision ? kWide : kWideSmall;
  }
  if (plan.kernel == Kernel::kMma && tuning.tile.positions > 0) plan.tile = tuning.tile;
  plan_tiles(plan, multiprocessors, shared_limit, tuning);
  plan.packed_bytes = a.groups * a.out_blocks * a.steps * plan.tile.channels * kChunkVectors * kVectorBytes;
  return plan;
}

std::size_t workspace_bytes(const Plan& plan) {
  return static_cast<std::size_t>(align_up(plan.x_bytes, kAlign) + align_up(plan.packed_bytes + kVectorBytes, kAlign) +
                                  align_up(plan.partial_bytes, kAlign));
}

// ---- launches ----

template <class V>
void copy_x(const Plan& plan, const TensorView& x, void* to, const CudaStream& stream) {
  const DeformConv2dShape& s = plan.shape;
  const Arguments& a = plan.arguments;
  CopyArguments c{};
  c.from = x.data, c.to = to;
  for (int i = 0; i < 4; ++i) c.stride[i] = x.stride[i];
  c.pixels = s.height * s.width, c.width = a.width;
  c.pixel_blocks = static_cast<std::int32_t>(divide_up(c.pixels, kCopyTile));
  c.segment_channels = a.segment_channels;
  c.padded_channels = a.segment_vectors * (kVectorBytes / static_cast<int>(sizeof(V)));
  c.all_channels = a.x_pixel * (kVectorBytes / static_cast<int>(sizeof(V)));
  const std::int64_t channel_blocks = divide_up(c.all_channels, kCopyTile);
  if (s.batch * c.pixel_blocks > kMaxInt || channel_blocks > 65535) {
    fail(ErrorKind::kUnsupported, kOp, ": x is too large to be brought to channels-last, got ", shape_text(x));
  }
  cuda::launch(kOp, copy_channels_last<V>,
               dim3(static_cast<unsigned>(s.batch * c.pixel_blocks), static_cast<unsigned>(channel_blocks), 1),
               dim3(kPrepareThreads, 1, 1), 0, stream, c);
}

template <class V>
void pack(const Plan& plan, const TensorView& weight, void* to, const CudaStream& stream) {
  const Arguments& a = plan.arguments;
  PackArguments p{};
  p.from = weight.data, p.to = to;
  for (int i = 0; i < 4; ++i) p.stride[i] = weight.stride[i];
  p.zeros = plan.packed_bytes / kVectorBytes, p.steps = a.steps;
  p.group_out = a.group_out, p.out_blocks = a.out_blocks, p.columns = plan.tile.channels;
  p.segments = a.segments, p.segment_channels = a.segment_channels, p.chunks = a.chunks;
  p.taps = a.taps, p.table_taps = a.table_taps, p.kernel_w = a.kernel_w;
  p.channels_inside = weight.stride[1] == 1 && a.taps > 1 ? 1 : 0;
  p.tf32 = plan.kernel != Kernel::kSimt && !plan.full_precision ? 1 : 0;
  p.kernel = plan.kernel;
  const std::int64_t blocks =
      static_cast<std::int64_t>(a.groups) * a.out_blocks * (plan.tile.channels / kPackRows) * a.segments * a.chunks;
  if (blocks > kMaxInt) fail(ErrorKind::kUnsupported, kOp, ": weight is too large, got ", shape_text(weight));
  cuda::launch(kOp, pack_weights<V>, dim3(static_cast<unsigned>(blocks), 1, 1), dim3(kPrepareThreads, 1, 1), 0, stream,
               p);
}

// The configurations that are compiled, tried in order until one is the plan's.
template <class Type, int kM, int kN, int kWarpsM, int kWarpsN, int kBlocks>
bool launch_mma_if(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  if (!same(plan.tile, TileConfig{kM, kN, kWarpsM, kWarpsN, kBlocks})) return false;
  cuda::launch(kOp, forward_mma<Type, kM, kN, kWarpsM, kWarpsN, kBlocks>, grid, dim3(32 * kWarpsM * kWarpsN, 1, 1),
               static_cast<std::size_t>(plan.shared_bytes), stream, plan.arguments);
  return true;
}

template <class Type>
void launch_mma(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  bool launched = launch_mma_if<Type, 64, 256, 2, 4, 1>(plan, grid, stream) ||
                  launch_mma_if<Type, 128, 128, 2, 4, 1>(plan, grid, stream) ||
                  launch_mma_if<Type, 128, 64, 4, 2, Type::kApart ? 1 : 2>(plan, grid, stream);
  if constexpr (!Type::kApart) launched = launched || launch_mma_if<Type, 128, 256, 2, 4, 1>(plan, grid, stream);
#if defined(CENTERMASK_TUNING)
  launched = launched || launch_mma_if<Type, 64, 256, 1, 4, 2>(plan, grid, stream) ||
             launch_mma_if<Type, 128, 128, 2, 2, 2>(plan, grid, stream) ||
             launch_mma_if<Type, 64, 128, 2, 4, 2>(plan, grid, stream) ||
             launch_mma_if<Type, 64, 128, 1, 4, 3>(plan, grid, stream) ||
             launch_mma_if<Type, 128, 64, 4, 1, 3>(plan, grid, stream) ||
             launch_mma_if<Type, 128, 64, 2, 2, 3>(plan, grid, stream) ||
             launch_mma_if<Type, 64, 64, 2, 2, 4>(plan, grid, stream) ||
             launch_mma_if<Type, 256, 64, 8, 1, 1>(plan, grid, stream);
#endif
  if (!launched) fail(ErrorKind::kRuntime, kOp, ": no kernel for the planned tile");
}

template <class Type>
void launch_wgmma(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  const auto kernel = plan.tile.channels == 64    ? forward_wgmma<Type, 64, 3>
                      : plan.tile.channels == 128 ? forward_wgmma<Type, 128, 2>
                                                  : forward_wgmma<Type, 256, 1>;
  cuda::launch(kOp, kernel, grid, dim3(static_cast<unsigned>(plan.tile.channels * 2), 1, 1),
               static_cast<std::size_t>(plan.shared_bytes), stream, plan.arguments);
}

template <class Type>
void launch_simt(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  const bool wide = same(plan.tile, kSimtWide);
  cuda::launch(kOp, wide ? forward_simt<Type, 128, 128> : forward_simt<Type, 64, 64>, grid, dim3(kSimtThreads, 1, 1),
               static_cast<std::size_t>(plan.shared_bytes), stream, plan.arguments);
}

// How the output is written: which dimension is the inner one, and whether 16 bytes at a time.
void lay_out_output(Arguments& a, const DeformConv2dShape& s) {
  const std::int64_t elements = kVectorBytes / dtype_size(s.dtype);
  a.channels_last_out = s.out_channels > 1 && a.output_stride[1] == 1 ? 1 : 0;
  if (reinterpret_cast<std::uintptr_t>(a.output) % kVectorBytes != 0) return;
  if (a.channels_last_out != 0) {
    a.vectors_out = s.out_channels % elements == 0 && a.group_out % elements == 0 ? 1 : 0;
  } else {
    a.vectors_out = (a.patch_w > 0 ? s.out_width : s.out_pixels()) % elements == 0 ? 1 : 0;
  }
}

template <class Simt, class Mma>
void run(Plan& plan, const TensorView& x, const TensorView& weight, const TensorView& offset, const TensorView& mask,
         const TensorView& bias, const Workspace& workspace, const TensorView& output, const CudaStream& stream) {
  using V = typename Simt::Value;
  Arguments& a = plan.arguments;
  unsigned char* memory = static_cast<unsigned char*>(workspace.data);
  a.x = x.data;
  if (plan.copy_x) {
    copy_x<V>(plan, x, memory, stream);
    a.x = memory;
    memory += align_up(plan.x_bytes, kAlign);
  }
  pack<V>(plan, weight, memory, stream);
  a.packed = memory;
  a.zeros = reinterpret_cast<const uint4*>(memory + plan.packed_bytes);
  memory += align_up(plan.packed_bytes + kVectorBytes, kAlign);
  a.partial = a.splits > 1 ? reinterpret_cast<float*>(memory) : nullptr;
  a.offset = offset.data;
  a.mask = mask.present() ? mask.data : nullptr;
  a.bias = bias.present() ? bias.data : nullptr;
  a.bias_stride = bias.present() ? bias.stride[0] : 0;
  a.output = output.data;
  for (int i = 0; i < 4; ++i) a.output_stride[i] = output.stride[i];
  lay_out_output(a, plan.shape);

  const dim3 grid(static_cast<unsigned>(a.tiles * a.groups * a.out_blocks), static_cast<unsigned>(a.splits), 1);
  if (plan.kernel == Kernel::kWgmma) {
#if defined(CENTERMASK_SM90A)
#if defined(CENTERMASK_TUNING)
    if (plan.half_blend && std::is_same<V, __half>::value) {
      launch_wgmma<MmaFloat16HalfBlend>(plan, grid, stream);
    } else
#endif
        if constexpr (!Mma::kApart) {
      launch_wgmma<Mma>(plan, grid, stream);
    }
#endif
  } else if (plan.kernel == Kernel::kMma) {
#if defined(CENTERMASK_TUNING)
    if (plan.half_blend && std::is_same<V, __half>::value) {
      launch_mma<MmaFloat16HalfBlend>(plan, grid, stream);
    } else
#endif
      launch_mma<Mma>(plan, grid, stream);
  } else {
    launch_simt<Simt>(plan, grid, stream);
  }
  if (a.splits > 1) {
    const dim3 sums(static_cast<unsigned>(divide_up(a.tiles * plan.tile.positions, kSumRows)),
                    static_cast<unsigned>(a.groups * a.out_blocks * plan.tile.channels / 32), 1);
    cuda::launch(kOp, sum_splits<V>, sums, dim3(kPrepareThreads, 1, 1), 0, stream, a, plan.tile);
  }
}

void check_output(const DeformConv2dShape& s, const TensorView& x, const TensorView& output) {
  bool fits = output.rank == 4 && output.dtype == s.dtype && output.device == x.device;
  if (fits) {
    const std::int64_t shape[4] = {s.batch, s.out_channels, s.out_height, s.out_width};
    for (int i = 0; i < 4; ++i) fits = fits && output.shape[i] == shape[i];
  }
  if (fits && !output.contiguous()) {
    TensorView rows = output;  // [N, H, W, C]
    const int order[4] = {0, 2, 3, 1};
    for (int i = 0; i < 4; ++i) rows.shape[i] = output.shape[order[i]], rows.stride[i] = output.stride[order[i]];
    fits = rows.contiguous();
  }
  if (!fits) {
    fail(ErrorKind::kValue, kOp, ": output must be row-major or channels-last ", dtype_name(s.dtype), " [", s.batch,
         ", ", s.out_channels, ", ", s.out_height, ", ", s.out_width, "] on the device of x, got ",
         dtype_name(output.dtype), " ", shape_text(output));
  }
}

}  // namespace

std::size_t workspace_tuned(const TensorView& x, const TensorView& weight, const TensorView& offset,
                            const TensorView& mask, const DeformConv2dParams& params, const Tuning& tuning) {
  return workspace_bytes(make_plan(x, weight, offset, mask, {}, params, tuning));
}

void forward_tuned(const TensorView& x, const TensorView& weight, const TensorView& offset, const TensorView& mask,
                   const TensorView& bias, const DeformConv2dParams& params, const Workspace& workspace,
                   const TensorView& output, const CudaStream& stream, const Tuning& tuning) {
  Plan plan = make_plan(x, weight, offset, mask, bias, params, tuning);
  check_output(plan.shape, x, output);
  if (stream.device != x.device.index) {
    fail(ErrorKind::kValue, kOp, ": the stream must be of the device of x, ", x.device.index, ", got ", stream.device);
  }
  if (plan.shape.batch == 0) return;
  const std::size_t needed = workspace_bytes(plan);
  if (workspace.data == nullptr || workspace.bytes < needed) {
    fail(ErrorKind::kValue, kOp, ": the workspace must have ", needed, " bytes, got ", workspace.bytes);
  }
  if (reinterpret_cast<std::uintptr_t>(workspace.data) % kVectorBytes != 0) {
    fail(ErrorKind::kValue, kOp, ": the workspace must begin on 256 bytes");
  }
  const cuda::DeviceGuard guard(stream, kOp);
  switch (plan.shape.dtype) {
    case DType::kFloat16:
      run<Float16, MmaFloat16>(plan, x, weight, offset, mask, bias, workspace, output, stream);
      break;
    case DType::kBFloat16:
      run<BFloat16, MmaBFloat16>(plan, x, weight, offset, mask, bias, workspace, output, stream);
      break;
    default:
      if (plan.full_precision) {
        run<Float32, MmaFloat32>(plan, x, weight, offset, mask, bias, workspace, output, stream);
        break;
      }
      run<Float32, MmaTf32>(plan, x, weight, offset, mask, bias, workspace, output, stream);
  }
}

}  // namespace deform_forward

std::size_t deform_conv2d_workspace_cuda(const TensorView& x, const TensorView& weight, const TensorView& offset,
                                         const TensorView& mask, const DeformConv2dParams& params) {
  return deform_forward::workspace_tuned(x, weight, offset, mask, params, {});
}

void deform_conv2d_cuda(const TensorView& x, const TensorView& weight, const TensorView& offset, const TensorView& mask,
                        const TensorView& bias, const DeformConv2dParams& params, const Workspace& workspace,
                        const TensorView& output, const CudaStream& stream) {
  deform_forward::forward_tuned(x, weight, offset, mask, bias, params, workspace, output, stream, {});
}

}  // namespace centermask
