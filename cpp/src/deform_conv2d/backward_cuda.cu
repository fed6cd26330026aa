// Backward on CUDA: lays out the workspace and launches the kernels. See backward_data.cuh and backward_weight.cuh.
#include <cstdint>

#include "deform_conv2d/backward_data.cuh"
#include "deform_conv2d/backward_plan.h"
#include "deform_conv2d/backward_rows.cuh"
#include "deform_conv2d/backward_weight.cuh"
#include "deform_conv2d/driver.h"

namespace centermask {

namespace deform_cuda {
namespace {

constexpr const char* kOp = "deform_conv2d";
using deform::divide_up;

struct Parts {
  void *pixels, *grad_pixels, *grads, *weights;
  float *places, *weight_parts, *bias_parts;
  unsigned* maxima;
  std::int64_t grad_pixel_bytes, weight_bytes;
};

std::size_t lay_out(deform::Layout layout, const BackwardPlan& p, Parts& parts) {
  const DeformConv2dShape& s = p.shape;
  const std::int64_t item = dtype_size(s.dtype), pixels = s.batch * s.height * s.width * p.pixel_stride;
  const bool need_data = p.need_x || p.need_places;
  parts = Parts{};
  parts.grad_pixel_bytes = pixels * (p.fixed_point ? 8 : 4);
  parts.weight_bytes = s.taps() * p.pixel_stride * p.out_stride * item;
  if (!p.direct_x && (p.need_places || p.need_weight)) parts.pixels = layout.take(pixels * item);
  if (p.need_x && !p.direct_grad_x) parts.grad_pixels = layout.take(parts.grad_pixel_bytes);
  if (!p.direct_grads && (need_data || p.need_weight)) parts.grads = layout.take(p.positions * p.grad_stride * item);
  if (need_data) parts.weights = layout.take(parts.weight_bytes);
  if (p.need_places && p.place_splits > 1) {
    parts.places = static_cast<float*>(layout.take(p.place_splits * 3 * p.positions * s.offset_groups * s.taps() * 4));
  }
  if (p.need_weight) {
    parts.weight_parts = static_cast<float*>(
        layout.take(p.weight_splits * s.params.groups * p.column_groups * p.group_out * 64 * std::int64_t{4}));
  }
  if (p.need_bias) parts.bias_parts = static_cast<float*>(layout.take(p.bias_splits * s.out_channels * 4));
  if (p.fixed_point) parts.maxima = static_cast<unsigned*>(layout.take(3 * 4));
  return layout.bytes();
}

// A grid of this many blocks, along x alone.
dim3 grid_of(std::int64_t blocks) {
  if (blocks >= std::int64_t{1} << 31) {
    fail(ErrorKind::kUnsupported, "deform_conv2d: too large for one launch: ", blocks, " blocks");
  }
  return dim3(static_cast<unsigned>(blocks));
}

void copy_rows(RowCopy copy, DType dtype, const CudaStream& stream) {
  copy.row_tiles = static_cast<int>(divide_up(copy.rows, kCopyTile));
  copy.column_tiles = static_cast<int>(divide_up(std::int64_t{copy.columns / copy.run} * copy.padded, kCopyTile));
  const dim3 grid = grid_of(std::int64_t{copy.row_tiles} * copy.column_tiles * copy.batch);
  if (dtype_size(dtype) == 2) {
    cuda::launch(kOp, copy_rows_kernel<std::uint16_t>, grid, dim3(kCopyThreads), 0, stream, copy);
  } else {
    cuda::launch(kOp, copy_rows_kernel<std::uint32_t>, grid, dim3(kCopyThreads), 0, stream, copy);
  }
}

// An [N, channels, H, W] map into [N*H*W][stride], in runs of channels.
void copy_map(const TensorView& map, std::int64_t run, std::int64_t padded, std::int64_t stride, void* to,
              const CudaStream& stream) {
  RowCopy copy{};
  copy.from = map.data, copy.to = to;
  copy.batch = static_cast<int>(map.shape[0]), copy.columns = static_cast<int>(map.shape[1]);
  copy.rows = static_cast<int>(map.shape[2] * map.shape[3]);
  copy.batch_stride = map.stride[0], copy.column_stride = map.stride[1];
  copy.row_stride[1] = map.stride[2], copy.row_stride[2] = map.stride[3];
  copy.split[0] = copy.rows, copy.split[1] = static_cast<int>(map.shape[3]);
  copy.turn = 1, copy.row_run = copy.row_padded = copy.rows;
  copy.batch_rows = copy.rows, copy.to_stride = stride;
  copy.run = static_cast<int>(run), copy.padded = static_cast<int>(padded);
  copy_rows(copy, map.dtype, stream);
}

// [taps][channels, padded][out channels of the channel's group, padded]
void copy_weight(const BackwardPlan& p, const TensorView& weight, const Parts& parts, const CudaStream& stream) {
  const DeformConv2dShape& s = p.shape;
  if (p.run != p.padded_run)
    cuda::fill_bytes(kOp, parts.weights, 0, static_cast<std::size_t>(parts.weight_bytes), stream);
  RowCopy copy{};
  copy.from = weight.data, copy.to = parts.weights;
  copy.batch = static_cast<int>(s.params.groups), copy.columns = static_cast<int>(p.group_out);
  copy.rows = static_cast<int>(s.in_channels / s.params.groups * s.taps());
  copy.batch_stride = p.group_out * weight.stride[0], copy.column_stride = weight.stride[0];
  for (int i = 0; i < 3; ++i) copy.row_stride[i] = weight.stride[i + 1];
  copy.split[0] = static_cast<int>(s.taps()), copy.split[1] = static_cast<int>(s.kernel_w);
  copy.turn = static_cast<int>(s.taps()), copy.turn_rows = p.pixel_stride;
  copy.row_run = static_cast<int>(p.run), copy.row_padded = static_cast<int>(p.padded_run);
  copy.batch_rows = p.pixel_stride / s.params.groups, copy.to_stride = p.out_stride;
  copy.run = static_cast<int>(p.group_out), copy.padded = static_cast<int>(p.out_stride);
  copy_rows(copy, weight.dtype, stream);
}

void find_maximum(const TensorView& view, unsigned* largest, const CudaStream& stream) {
  const std::int64_t blocks = divide_up(view.size(), 8 * kCopyThreads);
  cuda::launch(kOp, maximum_kernel, dim3(static_cast<unsigned>(blocks < 1024 ? blocks : 1024)), dim3(kCopyThreads), 0,
               stream, floats_of(view), static_cast<int>(view.shape[1]), static_cast<int>(view.shape[2]),
               static_cast<int>(view.shape[3]), view.size(), largest);
}

template <class T, Math kMath, bool kAll>
void launch_data(const BackwardPlan& p, const DataArguments& a, const CudaStream& stream) {
  const std::int64_t blocks = divide_up(p.positions, kTileRows) * a.offset_groups * a.tap_groups * a.splits;
  cuda::launch(kOp, backward_data_kernel<T, kMath, kAll>, grid_of(blocks), dim3(kDataThreads),
               data_shared_bytes(a.slices, a.resident), stream, a);
}

template <class T, Math kMath>
void launch_weight(const BackwardPlan& p, const WeightArguments& a, const CudaStream& stream) {
  const std::int64_t blocks = p.weight_splits * a.groups * a.out_tiles * a.column_tiles;
  cuda::launch(kOp, backward_weight_kernel<T, kMath>, grid_of(blocks), dim3(kWeightThreads),
               weight_shared_bytes<T>(a.warps_out), stream, a);
}

template <class T>
void run_data(const BackwardPlan& p, const Parts& parts, const Geometry& geometry, const void* pixels,
              const void* grads, Math math, const DeformConv2dGradients& gradients, const CudaStream& stream) {
  const DeformConv2dShape& s = p.shape;
  DataArguments a{};
  a.geometry = geometry, a.positions = static_cast<int>(p.positions);
  a.grads = grads, a.pixels = pixels, a.weights = parts.weights;
  a.grad_stride = p.grad_stride, a.pixel_stride = p.pixel_stride, a.out_stride = p.out_stride;
  a.slices = static_cast<int>(p.slices), a.resident = p.resident;
  a.offset_groups = static_cast<int>(s.offset_groups), a.runs = static_cast<int>(p.runs / s.offset_groups);
  a.run = static_cast<int>(p.padded_run), a.chunks_per_run = static_cast<int>(p.chunks_per_run);
  a.runs_per_group = static_cast<int>(p.runs / s.params.groups);
  a.taps_at_once = static_cast<int>(p.taps_at_once), a.tap_groups = static_cast<int>(p.tap_groups);
  a.chunks_at_once = static_cast<int>(p.chunks_at_once), a.splits = static_cast<int>(p.place_splits);
  if (p.need_x) a.grad_pixels = p.direct_grad_x ? gradients.x.data : parts.grad_pixels;
  a.maxima = parts.maxima, a.headroom = static_cast<int>(p.headroom);
  a.need_places = p.need_places, a.places = parts.places;
  a.grad_offset = floats_of(gradients.offset), a.grad_mask = floats_of(gradients.mask);
  if (p.need_x) {
    cuda::fill_bytes(kOp, a.grad_pixels, 0, static_cast<std::size_t>(parts.grad_pixel_bytes), stream);
  }
  const bool all = p.need_x && p.need_places && !p.fixed_point;
  if (math == Math::kSimt) {
    launch_data<T, Math::kSimt, false>(p, a, stream);
  } else if (math == Math::kTensor) {
    (all ? launch_data<T, Math::kTensor, true> : launch_data<T, Math::kTensor, false>)(p, a, stream);
  } else if constexpr (sizeof(T) == 4) {
    (all ? launch_data<T, Math::kFloat32, true> : launch_data<T, Math::kFloat32, false>)(p, a, stream);
  }
  if (p.need_places && a.splits > 1) {
    FinishPlaces f{};
    f.parts = parts.places, f.splits = a.splits, f.positions = a.positions, f.out_pixels = geometry.out_pixels;
    f.channels = s.offset_groups * s.taps();
    f.grad_offset = a.grad_offset, f.grad_mask = a.grad_mask;
    cuda::launch(kOp, finish_places_kernel, grid_of(divide_up(f.channels * f.positions, kCopyThreads)),
                 dim3(kCopyThreads), 0, stream, f);
  }
  if (p.need_x && !p.direct_grad_x) {
    FinishPixels f{};
    f.from = parts.grad_pixels, f.to = gradients.x.data;
    f.batch = static_cast<int>(s.batch), f.pixels = static_cast<int>(s.height * s.width);
    f.channels = static_cast<int>(s.in_channels);
    f.run = static_cast<int>(p.run), f.padded_run = static_cast<int>(p.padded_run);
    f.pixel_stride = p.pixel_stride, f.maxima = parts.maxima, f.headroom = a.headroom;
    f.channels_last = p.grad_x_channels_last;
    f.row_tiles = static_cast<int>(divide_up(f.pixels, kCopyTile));
    f.column_tiles = static_cast<int>(divide_up(f.channels, kCopyTile));
    cuda::launch(kOp, finish_pixels_kernel<T>, grid_of(std::int64_t{f.row_tiles} * f.column_tiles * f.batch),
                 dim3(kCopyThreads), 0, stream, f);
  }
}

template <class T>
void run_weight(const BackwardPlan& p, const Parts& parts, const Geometry& geometry, const void* pixels,
                const void* grads, Math math, const DeformConv2dGradients& gradients, const CudaStream& stream) {
  const DeformConv2dShape& s = p.shape;
  WeightArguments a{};
  a.geometry = geometry, a.positions = static_cast<int>(p.positions);
  a.grads = grads, a.pixels = pixels;
  a.grad_stride = p.grad_stride, a.pixel_stride = p.pixel_stride, a.out_stride = p.out_stride;
  a.groups = static_cast<int>(s.params.groups), a.group_out = static_cast<int>(p.group_out);
  a.runs = static_cast<int>(p.runs / s.params.groups), a.run = static_cast<int>(p.padded_run);
  a.chunks_per_run = static_cast<int>(p.chunks_per_run);
  a.run_offset_groups = static_cast<int>(p.runs / s.offset_groups);
  a.warps_out = static_cast<int>(p.warps_out), a.out_tiles = static_cast<int>(p.out_tiles);
  a.column_tiles = static_cast<int>(p.column_tiles), a.positions_at_once = static_cast<int>(p.positions_at_once);
  a.parts = parts.weight_parts;
  if (math == Math::kSimt) {
    launch_weight<T, Math::kSimt>(p, a, stream);
  } else if (math == Math::kTensor) {
    launch_weight<T, Math::kTensor>(p, a, stream);
  } else if constexpr (sizeof(T) == 4) {
    launch_weight<T, Math::kFloat32>(p, a, stream);
  }
  FinishWeight f{};
  f.parts = parts.weight_parts, f.to = gradients.weight.data;
  f.splits = static_cast<int>(p.weight_splits), f.groups = a.groups, f.group_out = a.group_out;
  f.group_in = static_cast<int>(s.in_channels / s.params.groups), f.taps = geometry.taps;
  f.run = static_cast<int>(p.run), f.chunks_per_run = a.chunks_per_run;
  f.column_groups = static_cast<int>(p.column_groups);
  cuda::launch(kOp, finish_weight_kernel<T>, grid_of(divide_up(s.out_channels * f.group_in * f.taps, kCopyThreads)),
               dim3(kCopyThreads), 0, stream, f);
}

template <class T>
void run_bias(const BackwardPlan& p, const Parts& parts, const TensorView& grad_output, const TensorView& grad_bias,
              const CudaStream& stream) {
  const DeformConv2dShape& s = p.shape;
  BiasSums a{};
  a.grad_output = grad_output.data;
  for (int i = 0; i < 4; ++i) a.stride[i] = grad_output.stride[i];
  a.positions = static_cast<int>(p.positions), a.out_pixels = static_cast<int>(s.out_pixels());
  a.out_width = static_cast<int>(s.out_width), a.channels = static_cast<int>(s.out_channels);
  a.positions_at_once = static_cast<int>(p.bias_at_once), a.splits = static_cast<int>(p.bias_splits);
  a.parts = parts.bias_parts;
  cuda::launch(kOp, bias_parts_kernel<T>, grid_of(divide_up(s.out_channels, 32) * p.bias_splits), dim3(kCopyThreads), 0,
               stream, a);
  cuda::launch(kOp, finish_bias_kernel<T>, grid_of(divide_up(s.out_channels, kCopyThreads / 32)), dim3(kCopyThreads), 0,
               stream, static_cast<const float*>(a.parts), a.splits, a.channels, grad_bias.ptr<T>());
}

template <class T>
void run(const BackwardPlan& p, const Parts& parts, const TensorView& grad_output, const TensorView& x,
         const TensorView& weight, const TensorView& offset, const TensorView& mask,
         const DeformConv2dGradients& gradients, const CudaStream& stream) {
  const DeformConv2dShape& s = p.shape;
  const Math math = cuda::code_features(kOp, stream).capability < 80    ? Math::kSimt
                    : s.dtype != DType::kFloat32 || s.params.allow_tf32 ? Math::kTensor
                                                                        : Math::kFloat32;
  const Geometry geometry = geometry_of(s, offset, mask);
  if (parts.pixels != nullptr) copy_map(x, p.run, p.padded_run, p.pixel_stride, parts.pixels, stream);
  if (parts.grads != nullptr) copy_map(grad_output, p.group_out, p.out_stride, p.grad_stride, parts.grads, stream);
  const void* pixels = p.direct_x ? x.data : parts.pixels;
  const void* grads = p.direct_grads ? grad_output.data : parts.grads;
  if (p.fixed_point) {
    cuda::fill_bytes(kOp, parts.maxima, 0, 3 * sizeof(unsigned), stream);
    find_maximum(grad_output, parts.maxima, stream);
    find_maximum(weight, parts.maxima + 1, stream);
    if (mask.present()) find_maximum(mask, parts.maxima + 2, stream);
  }
  if (p.need_x || p.need_places) {
    copy_weight(p, weight, parts, stream);
    run_data<T>(p, parts, geometry, pixels, grads, math, gradients, stream);
  }
  if (p.need_weight) run_weight<T>(p, parts, geometry, pixels, grads, math, gradients, stream);
  if (p.need_bias) run_bias<T>(p, parts, grad_output, gradients.bias, stream);
}

}  // namespace
}  // namespace deform_cuda

using namespace deform_cuda;

std::size_t deform_conv2d_backward_workspace_cuda(const TensorView& grad_output, const TensorView& x,
                                                  const TensorView& weight, const TensorView& offset,
                                                  const TensorView& mask, const DeformConv2dParams& params,
                                                  const DeformConv2dGradients& gradients) {
  const BackwardPlan p = plan_backward(grad_output, x, weight, offset, mask, params, gradients);
  Parts parts;
  return p.shape.batch == 0 ? 0 : lay_out(deform::Layout(), p, parts);
}

void deform_conv2d_backward_cuda(const TensorView& grad_output, const TensorView& x, const TensorView& weight,
                                 const TensorView& offset, const TensorView& mask, const DeformConv2dParams& params,
                                 const Workspace& workspace, const DeformConv2dGradients& gradients,
                                 const CudaStream& stream) {
  const BackwardPlan p = plan_backward(grad_output, x, weight, offset, mask, params, gradients);
  if (x.device.index != stream.device) {
    fail(ErrorKind::kValue, "deform_conv2d: x must be on the stream's device, ", stream.device, ", got ",
         x.device.index);
  }
  const cuda::DeviceGuard guard(stream, kOp);
  if (p.shape.batch == 0) {
    for (const TensorView* gradient : {&gradients.weight, &gradients.bias}) {
      const std::int64_t bytes = gradient->size() * dtype_size(gradient->dtype);
      if (gradient->present()) cuda::fill_bytes(kOp, gradient->data, 0, static_cast<std::size_t>(bytes), stream);
    }
    return;
  }
  Parts parts;
  deform::check_workspace(workspace, lay_out(deform::Layout(), p, parts));
  lay_out(deform::Layout(workspace.data), p, parts);
  if (p.shape.dtype == DType::kFloat16) {
    run<__half>(p, parts, grad_output, x, weight, offset, mask, gradients, stream);
  } else if (p.shape.dtype == DType::kBFloat16) {
    run<__nv_bfloat16>(p, parts, grad_output, x, weight, offset, mask, gradients, stream);
  } else {
    run<float>(p, parts, grad_output, x, weight, offset, mask, gradients, stream);
  }
}

}  // namespace centermask
