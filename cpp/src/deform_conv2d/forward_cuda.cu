// Forward on CUDA: prepares the operands in the workspace and launches the kernels. docs/cuda.md has
// the reasons for the choices.
#include "cuda/runtime.h"
#include "deform_conv2d/forward_choose.h"
#include "deform_conv2d/forward_mma.cuh"
#include "deform_conv2d/forward_prepare.cuh"
#include "deform_conv2d/forward_ring.cuh"
#include "deform_conv2d/forward_simt.cuh"
#include "deform_conv2d/forward_wgmma.cuh"

namespace centermask {

namespace deform_forward {
namespace {

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
  constexpr std::int64_t kItem = sizeof(V), kElements = kVectorBytes / kItem;
  const bool planes = x.stride[3] == 1 && x.stride[2] == s.width && c.pixels % kElements == 0 &&
                      x.stride[1] % kElements == 0 && x.stride[0] % kElements == 0 &&
                      c.segment_channels == c.padded_channels &&
                      reinterpret_cast<std::uintptr_t>(x.data) % kVectorBytes == 0;
  cuda::launch(kOp, planes ? copy_planes<V> : copy_channels_last<V>,
               dim3(static_cast<unsigned>(s.batch * c.pixel_blocks), static_cast<unsigned>(channel_blocks), 1),
               dim3(kPrepareThreads, 1, 1), 0, stream, c);
}

template <class V>
void pack(const Plan& plan, const TensorView& weight, void* to, const CudaStream& stream) {
  const Arguments& a = plan.arguments;
  PackArguments p{};
  p.from = weight.data, p.to = to;
  for (int i = 0; i < 4; ++i) p.stride[i] = weight.stride[i];
  p.steps = a.steps;
  p.zeros = align_up(plan.packed_bytes, kAlign) / kVectorBytes;
  p.zero_vectors = divide_up(plan.zero_bytes + plan.counter_bytes, kVectorBytes);
  p.group_out = a.group_out, p.out_blocks = a.out_blocks, p.columns = plan.tile.channels;
  p.segments = a.segments, p.segment_channels = a.segment_channels, p.chunks = a.chunks;
  p.taps = a.taps, p.table_taps = a.table_taps, p.kernel_w = a.kernel_w;
  p.channels_inside = weight.stride[1] == 1 && a.taps > 1 ? 1 : 0;
  p.parts = parts_of(plan.kernel, plan.full_precision);
  p.tf32 = plan.kernel != Kernel::kSimt && (!plan.full_precision || p.parts > 1) ? 1 : 0;
  p.kernel = plan.kernel;
  const std::int64_t blocks =
      static_cast<std::int64_t>(a.groups) * a.out_blocks * (plan.tile.channels / kPackRows) * a.segments * a.chunks;
  if (blocks > kMaxInt) fail(ErrorKind::kUnsupported, kOp, ": weight is too large, got ", shape_text(weight));
  const std::int64_t item = dtype_size(weight.dtype), run = a.taps * a.segment_channels * item;
  const auto whole = [](std::int64_t bytes) { return bytes % kVectorBytes == 0; };
  p.whole_rows = a.taps <= kPackTaps && weight.stride[3] == 1 && weight.stride[2] == a.kernel_w &&
                         weight.stride[1] == a.taps && whole(run) && whole(weight.stride[0] * item) &&
                         whole(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(weight.data)))
                     ? 1
                     : 0;
  const bool taps_in_turn = p.channels_inside != 0 && weight.stride[2] == a.kernel_w * weight.stride[3] &&
                            whole(weight.stride[0] * item) && whole(weight.stride[3] * item) &&
                            whole(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(weight.data)));
  const std::int64_t group_blocks = static_cast<std::int64_t>(a.groups) * a.out_blocks;
  if (plan.kernel == Kernel::kRing && a.taps == kTurnTaps && whole(a.segment_channels * item) &&
      (p.whole_rows != 0 || taps_in_turn) && group_blocks <= 65535 && a.chunks <= 65535) {
    return cuda::launch_early(kOp, plan.early_packing, taps_in_turn ? turn_weights<V, true> : turn_weights<V, false>,
                              dim3(static_cast<unsigned>(p.columns / kTurnRows), static_cast<unsigned>(a.chunks),
                                   static_cast<unsigned>(group_blocks)),
                              dim3(kTurnThreads, 1, 1), 0, stream, p);
  }
  // Few blocks would wait long for their loads, so that then each has a few taps only.
  p.taps_at_once = blocks >= 256 ? kPackTaps : blocks >= 64 || p.whole_rows != 0 ? 3 : 1;
  const std::int64_t parts = divide_up(a.taps, p.taps_at_once);
  cuda::launch(kOp, pack_weights<V>,
               dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts < 64 ? parts : 64)),
               dim3(kPrepareThreads, 1, 1), 0, stream, p);
}

// The configurations that are compiled, tried in order until one is the plan's.
template <class Type, int kM, int kN, int kWarpsM, int kWarpsN, int kBlocks>
bool launch_mma_if(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  if (!same(plan.tile, TileConfig{kM, kN, kWarpsM, kWarpsN, kBlocks, 0})) return false;
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
  if (!launched) fail(ErrorKind::kRuntime, kOp, ": no kernel for the planned tile");
}

template <class Type, int kN, int kSides, int kBlocks>
bool launch_wgmma_if(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  if (!same(plan.tile, TileConfig{kWgmmaPositions, kN, kSides, kN / 16, kBlocks, 0})) return false;
  cuda::launch(kOp, forward_wgmma<Type, kN, kSides, kBlocks>, grid, dim3(kN / 64 * kSides * 128, 1, 1),
               static_cast<std::size_t>(plan.shared_bytes), stream, plan.arguments);
  return true;
}

template <class Type>
void launch_wgmma(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  bool launched = launch_wgmma_if<Type, 64, 2, 2>(plan, grid, stream) ||
                  launch_wgmma_if<Type, 128, 2, 1>(plan, grid, stream) ||
                  launch_wgmma_if<Type, 256, 1, 1>(plan, grid, stream);
  if (!launched) fail(ErrorKind::kRuntime, kOp, ": no kernel for the planned tile");
}

template <class Type, int kM, int kN, int kWarps, int kGroups, int kStages, int kBlocks>
bool launch_ring_if(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  if (!same(plan.tile, TileConfig{kM, kN, kWarps, 4 * kGroups, kBlocks, kStages})) return false;
  cuda::launch_early(kOp, plan.early, forward_ring<Type, kM, kN, kWarps, kGroups, kStages, kBlocks>, grid,
                     dim3(128 * kGroups + 32 * kWarps, 1, 1), static_cast<std::size_t>(plan.shared_bytes), stream,
                     plan.arguments);
  return true;
}

template <class Type>
void launch_ring(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  bool launched = false;
  if constexpr (Type::kApart) {
    launched = launch_ring_if<Type, 128, 64, 16, 1, 3, 1>(plan, grid, stream) ||
               launch_ring_if<Type, 128, 128, 8, 2, 2, 1>(plan, grid, stream);
#if defined(CENTERMASK_TUNING)
    launched = launched || launch_ring_if<Type, 128, 64, 8, 1, 3, 1>(plan, grid, stream);
#endif
  } else {
    launched = launch_ring_if<Type, 128, 64, 8, 1, 2, 2>(plan, grid, stream) ||
               launch_ring_if<Type, 128, 128, 8, 2, 4, 1>(plan, grid, stream) ||
               launch_ring_if<Type, 64, 256, 8, 2, 4, 1>(plan, grid, stream) ||
               launch_ring_if<Type, 128, 256, 8, 2, 3, 1>(plan, grid, stream);
#if defined(CENTERMASK_TUNING)
    if constexpr (std::is_same<Type, MmaFloat16>::value) {
      launched = launched || launch_ring_if<Type, 128, 64, 8, 1, 3, 2>(plan, grid, stream) ||
                 launch_ring_if<Type, 64, 64, 8, 1, 3, 2>(plan, grid, stream) ||
                 launch_ring_if<Type, 64, 128, 8, 1, 3, 2>(plan, grid, stream);
    }
    if constexpr (std::is_same<Type, MmaTf32>::value) {
      launched = launched || launch_ring_if<Type, 128, 64, 8, 1, 3, 2>(plan, grid, stream) ||
                 launch_ring_if<Type, 128, 128, 16, 1, 3, 1>(plan, grid, stream);
    }
#endif
  }
  if (!launched) fail(ErrorKind::kRuntime, kOp, ": no kernel for the planned tile");
}

template <class Type>
void launch_simt(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  const bool wide = same(plan.tile, kSimtWide);
  cuda::launch(kOp, wide ? forward_simt<Type, 128, 128> : forward_simt<Type, 64, 64>, grid, dim3(kSimtThreads, 1, 1),
               static_cast<std::size_t>(plan.shared_bytes), stream, plan.arguments);
}

template <class Simt, class Mma>
void launch_product(const Plan& plan, const dim3& grid, const CudaStream& stream) {
  switch (plan.kernel) {
#if defined(CENTERMASK_SM90A)
    case Kernel::kRing:
#if defined(CENTERMASK_TUNING)
      if (std::is_same<Mma, MmaFloat16>::value) {
        switch (plan.study) {
          case Study::kHalfBlend: return launch_ring<StudyFloat16<Study::kHalfBlend>>(plan, grid, stream);
          case Study::kNoBlend: return launch_ring<StudyFloat16<Study::kNoBlend>>(plan, grid, stream);
          case Study::kNoGather: return launch_ring<StudyFloat16<Study::kNoGather>>(plan, grid, stream);
          case Study::kNoProduct: return launch_ring<StudyFloat16<Study::kNoProduct>>(plan, grid, stream);
          case Study::kNone: break;
        }
      }
#endif
      return launch_ring<Mma>(plan, grid, stream);
    case Kernel::kWgmma:
      if constexpr (!Mma::kApart) launch_wgmma<Mma>(plan, grid, stream);
      return;
#endif
    case Kernel::kMma: return launch_mma<Mma>(plan, grid, stream);
    default: return launch_simt<Simt>(plan, grid, stream);
  }
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
    if ((plan.kernels & kPrepare) != 0) copy_x<V>(plan, x, memory, stream);
    a.x = memory;
    memory += align_up(plan.x_bytes, kAlign);
  }
  if ((plan.kernels & kPrepare) != 0) pack<V>(plan, weight, memory, stream);
  a.packed = memory;
  memory += align_up(plan.packed_bytes, kAlign);
  a.zeros = reinterpret_cast<const uint4*>(memory);
  a.counters = plan.counter_bytes > 0 ? reinterpret_cast<std::int32_t*>(memory + plan.zero_bytes) : nullptr;
  memory += align_up(plan.zero_bytes + plan.counter_bytes, kAlign);
  a.partial = a.splits > 1 ? reinterpret_cast<float*>(memory) : nullptr;
  a.offset = offset.data;
  a.mask = mask.present() ? mask.data : nullptr;
  a.bias = bias.present() ? bias.data : nullptr;
  a.bias_stride = bias.present() ? bias.stride[0] : 0;
  a.output = output.data;
  for (int i = 0; i < 4; ++i) a.output_stride[i] = output.stride[i];
  lay_out_output(a, plan.shape);

  const dim3 grid(static_cast<unsigned>(a.tiles * a.groups * a.out_blocks), static_cast<unsigned>(a.splits), 1);
  if ((plan.kernels & kProduct) != 0) launch_product<Simt, Mma>(plan, grid, stream);
  if (a.splits > 1 && a.counters == nullptr && (plan.kernels & kSum) != 0) {
    const dim3 sums(static_cast<unsigned>(divide_up(a.tiles * plan.tile.positions, kSumRows)),
                    static_cast<unsigned>(a.groups * a.out_blocks * plan.tile.channels / 32), 1);
    cuda::launch_early(kOp, plan.kernel == Kernel::kRing && plan.early, sum_splits<V>, sums,
                       dim3(kPrepareThreads, 1, 1), 0, stream, a, plan.tile);
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
    fail(ErrorKind::kValue, kOp, ": the workspace must begin on ", kVectorBytes, " bytes");
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
