#include "deform_conv2d/backward_plan.h"

#include <cstdint>

#include "centermask/error.h"
#include "deform_conv2d/backward_check.h"
#include "deform_conv2d/driver.h"

namespace centermask::deform_cuda {
namespace {

using deform::align_up;
using deform::divide_up;

// Blocks to aim at: some waves on the largest cards, so that the last one does not matter much.
constexpr std::int64_t kDataBlocks = 2048, kWeightBlocks = 792;
constexpr std::int64_t kMostWeightSplits = 264, kMostPlaceSplits = 16;
constexpr std::int64_t kTilePositions = 64, kChunk = 64;
constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;

bool aligned(const TensorView& view) { return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0; }

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

std::int64_t log2_up(std::int64_t value) {
  std::int64_t log = 0;
  while ((std::int64_t{1} << log) < value) ++log;
  return log;
}

void plan_rows(const TensorView& grad_output, const TensorView& x, const DeformConv2dGradients& gradients,
               BackwardPlan& p) {
  const DeformConv2dShape& s = p.shape;
  std::int64_t a = s.in_channels / s.params.groups, b = s.in_channels / s.offset_groups;
  // Both divide C, so boundaries fall on multiples of the greatest common divisor.
  while (b != 0) {
    const std::int64_t rest = a % b;
    a = b, b = rest;
  }
  p.run = a, p.runs = s.in_channels / a;
  p.padded_run = align_up(p.run, 8);
  p.chunks_per_run = divide_up(p.run, kChunk);
  p.pixel_stride = p.runs * p.padded_run;
  p.direct_x = deform::dense_channels_last(x) && p.run == p.padded_run && aligned(x);

  p.group_out = s.out_channels / s.params.groups;
  p.out_stride = align_up(p.group_out, 8);
  p.grad_stride = s.params.groups * p.out_stride;
  p.direct_grads = deform::dense_channels_last(grad_output) && p.group_out == p.out_stride && aligned(grad_output);

  p.grad_x_channels_last = p.need_x && !gradients.x.contiguous();
  p.direct_grad_x = p.need_x && !p.fixed_point && s.dtype == DType::kFloat32 && p.run == p.padded_run &&
                    deform::dense_channels_last(gradients.x) && aligned(gradients.x);
}

void plan_data(BackwardPlan& p) {
  const DeformConv2dShape& s = p.shape;
  p.slices = divide_up(p.out_stride * dtype_size(s.dtype), 128);
  const std::int64_t runs = p.runs / s.offset_groups,
                     groups_in_offset_group = most(1, s.params.groups / s.offset_groups);
  p.resident = p.slices <= 4 && groups_in_offset_group == 1 && (runs == 1 || s.params.groups == 1);
  const std::int64_t blocks = divide_up(p.positions, kTilePositions) * s.offset_groups;
  p.taps_at_once = divide_up(s.taps(), least(s.taps(), divide_up(kDataBlocks, blocks)));
  p.tap_groups = divide_up(s.taps(), p.taps_at_once);
  const std::int64_t chunks = runs * p.chunks_per_run;
  const std::int64_t splits = least(least(chunks, kMostPlaceSplits), divide_up(kDataBlocks, blocks * p.tap_groups));
  p.chunks_at_once = divide_up(chunks, splits);
  p.place_splits = divide_up(chunks, p.chunks_at_once);
  p.headroom = log2_up(p.group_out) + log2_up(s.out_pixels()) + log2_up(s.taps()) + 1;
}

void plan_weight(BackwardPlan& p) {
  const DeformConv2dShape& s = p.shape;
  const std::int64_t slice = 64 / dtype_size(s.dtype);
  p.warps_out = p.group_out > 128 ? 4 : p.group_out > 64 ? 2 : 1;
  p.out_tiles = divide_up(p.group_out, 64 * p.warps_out);
  p.column_groups = p.runs / s.params.groups * p.chunks_per_run * s.taps();
  p.column_tiles = divide_up(p.column_groups, 4 / p.warps_out);
  const std::int64_t blocks = s.params.groups * p.out_tiles * p.column_tiles;
  const std::int64_t splits =
      least(least(kMostWeightSplits, divide_up(kWeightBlocks, blocks)), divide_up(p.positions, 8 * slice));
  p.positions_at_once = align_up(divide_up(p.positions, splits), slice);
  p.weight_splits = divide_up(p.positions, p.positions_at_once);
  p.bias_at_once = most(512, divide_up(p.positions, 1024));
  p.bias_splits = divide_up(p.positions, p.bias_at_once);
}

}  // namespace

BackwardPlan plan_backward(const TensorView& grad_output, const TensorView& x, const TensorView& weight,
                           const TensorView& offset, const TensorView& mask, const DeformConv2dParams& params,
                           const DeformConv2dGradients& gradients) {
  BackwardPlan p;
  p.shape = deform_conv2d_shape(x, weight, offset, mask, {}, params);
  const DeformConv2dShape& s = p.shape;
  if (x.device.type != DeviceType::kCuda) fail(ErrorKind::kValue, "deform_conv2d: x must be on a CUDA device");
  if (s.dtype != DType::kFloat32 && s.dtype != DType::kFloat16 && s.dtype != DType::kBFloat16) {
    fail(ErrorKind::kType, "deform_conv2d: x must be float32, float16 or bfloat16 on CUDA, got ", dtype_name(s.dtype));
  }
  deform::check_backward_arguments(s, grad_output, x, weight, offset, mask, gradients);
  if (s.batch == 0) return p;
  if (s.out_pixels() > kMost / s.batch || s.in_channels > kMost / 16 || s.out_channels > kMost / 16 ||
      s.taps() > kMost / 16 / (s.in_channels / params.groups)) {
    fail(ErrorKind::kUnsupported, "deform_conv2d: on CUDA the output must have fewer than 2^31 pixels over the batch (",
         s.batch, " x ", s.out_pixels(), "), and weight fewer than 2^27 values for an out channel (",
         s.in_channels / params.groups, " x ", s.taps(), ")");
  }
  p.positions = s.batch * s.out_pixels();
  p.need_x = gradients.x.present();
  p.need_weight = gradients.weight.present();
  p.need_places = gradients.offset.present() || gradients.mask.present();
  p.need_bias = gradients.bias.present();
  p.fixed_point = p.need_x && params.deterministic;
  plan_rows(grad_output, x, gradients, p);
  if (p.pixel_stride > kMost / (s.width + 2)) {
    fail(ErrorKind::kUnsupported, "deform_conv2d: on CUDA a row of x must have fewer than 2^31 values, got ", s.width,
         " x ", p.pixel_stride);
  }
  plan_data(p);
  plan_weight(p);
  return p;
}

}  // namespace centermask::deform_cuda
