// The shape and type rules of deform_conv2d, for every device.
#include <cstdint>
#include <string>

#include "centermask/deform_conv2d.h"
#include "centermask/error.h"

namespace centermask {

namespace {

constexpr const char* kOp = "deform_conv2d: ";
constexpr std::int64_t kMaxPixels = std::int64_t{1} << 30;  // kernels number pixels of an image in 32 bits
constexpr std::int64_t kMaxStep = 1 << 24;                  // of a parameter: far from overflow in any product below

void check_rank(const TensorView& view, const char* name, int rank, const char* layout) {
  if (!view.present()) fail(ErrorKind::kValue, kOp, name, " is missing");
  if (view.rank != rank) fail(ErrorKind::kValue, kOp, name, " must be ", layout, ", got ", shape_text(view));
}

std::string device_text(const Device& device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

void check_like_x(const TensorView& view, const char* name, const TensorView& x, bool float32_too) {
  if (view.device != x.device) {
    fail(ErrorKind::kValue, kOp, name, " must be on the device of x (", device_text(x.device), "), got ",
         device_text(view.device));
  }
  if (view.dtype == x.dtype || (float32_too && view.dtype == DType::kFloat32)) return;
  fail(ErrorKind::kType, kOp, name, " must be ", dtype_name(x.dtype),
       float32_too && x.dtype != DType::kFloat32 ? " or float32" : "", " as x is, got ", dtype_name(view.dtype));
}

void check_pair(const std::int64_t (&pair)[2], const char* name, std::int64_t least) {
  if (pair[0] < least || pair[1] < least || pair[0] > kMaxStep || pair[1] > kMaxStep) {
    fail(ErrorKind::kValue, kOp, name, " must be >= ", least, " and <= 2^24, got (", pair[0], ", ", pair[1], ")");
  }
}

std::int64_t out_extent(std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t padding,
                        std::int64_t dilation) {
  const std::int64_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace

DeformConv2dShape deform_conv2d_shape(const TensorView& x, const TensorView& weight, const TensorView& offset,
                                      const TensorView& mask, const TensorView& bias,
                                      const DeformConv2dParams& params) {
  check_rank(x, "x", 4, "[N, C, H, W]");
  check_rank(weight, "weight", 4, "[out channels, C/groups, kh, kw]");
  check_rank(offset, "offset", 4, "[N, 2*groups*kh*kw, out H, out W]");
  check_pair(params.stride, "stride", 1);
  check_pair(params.padding, "padding", 0);
  check_pair(params.dilation, "dilation", 1);
  if (params.groups < 1) fail(ErrorKind::kValue, kOp, "groups must be >= 1, got ", params.groups);

  // The CPU has its own rule, which its functions check.
  if (x.device.type == DeviceType::kCuda && x.dtype != DType::kFloat32 && x.dtype != DType::kFloat16 &&
      x.dtype != DType::kBFloat16) {
    fail(ErrorKind::kType, kOp, "x must be float32, float16 or bfloat16 on CUDA, got ", dtype_name(x.dtype));
  }

  DeformConv2dShape s;
  s.dtype = x.dtype;
  s.params = params;
  s.batch = x.shape[0], s.in_channels = x.shape[1], s.height = x.shape[2], s.width = x.shape[3];
  s.out_channels = weight.shape[0], s.kernel_h = weight.shape[2], s.kernel_w = weight.shape[3];

  check_like_x(weight, "weight", x, false);
  check_like_x(offset, "offset", x, true);
  if (mask.present()) check_like_x(mask, "mask", x, true);
  if (mask.present() && mask.dtype != offset.dtype) {
    fail(ErrorKind::kType, kOp, "mask must be ", dtype_name(offset.dtype), " as offset is, got ",
         dtype_name(mask.dtype));
  }
  if (bias.present()) check_like_x(bias, "bias", x, false);

  if (s.in_channels < 1 || s.height < 1 || s.width < 1) {
    fail(ErrorKind::kValue, kOp, "x must have at least one channel and one pixel, got ", shape_text(x));
  }
  if (weight.size() < 1) fail(ErrorKind::kValue, kOp, "weight must not be empty, got ", shape_text(weight));
  if (s.kernel_h > kMaxStep || s.kernel_w > kMaxStep) {
    fail(ErrorKind::kValue, kOp, "the kernel of weight ", shape_text(weight), " must be at most 2^24 high and wide");
  }
  if (s.height >= kMaxPixels || s.width >= kMaxPixels || s.height * s.width >= kMaxPixels) {
    fail(ErrorKind::kValue, kOp, "x must have fewer than 2^30 pixels an image, got ", shape_text(x));
  }
  if (s.in_channels % params.groups != 0 || s.out_channels % params.groups != 0) {
    fail(ErrorKind::kValue, kOp, "groups=", params.groups, " must divide the channels of x (", s.in_channels,
         ") and of the output (", s.out_channels, ")");
  }
  if (weight.shape[1] != s.in_channels / params.groups) {
    fail(ErrorKind::kValue, kOp, "weight must be [", s.out_channels, ", C/groups=", s.in_channels / params.groups, ", ",
         s.kernel_h, ", ", s.kernel_w, "] for x ", shape_text(x), ", got ", shape_text(weight));
  }

  s.out_height = out_extent(s.height, s.kernel_h, params.stride[0], params.padding[0], params.dilation[0]);
  s.out_width = out_extent(s.width, s.kernel_w, params.stride[1], params.padding[1], params.dilation[1]);
  if (s.out_height < 1 || s.out_width < 1) {
    fail(ErrorKind::kValue, kOp, "the output would be empty: x ", shape_text(x), " with weight ", shape_text(weight));
  }

  const std::int64_t per_group = 2 * s.taps();
  s.offset_groups = offset.shape[1] / per_group;
  const bool whole = s.offset_groups >= 1 && offset.shape[1] == s.offset_groups * per_group;
  if (!whole || offset.shape[0] != s.batch || offset.shape[2] != s.out_height || offset.shape[3] != s.out_width) {
    fail(ErrorKind::kValue, kOp, "offset must be [N=", s.batch,
         ", 2*groups*kh*kw=", whole ? offset.shape[1] : per_group, ", ", s.out_height, ", ", s.out_width, "], got ",
         shape_text(offset));
  }
  if (s.in_channels % s.offset_groups != 0) {
    fail(ErrorKind::kValue, kOp, "the ", s.offset_groups, " offset groups of offset ", shape_text(offset),
         " must divide the channels of x ", shape_text(x));
  }
  const std::int64_t mask_channels = s.offset_groups * s.taps();
  if (mask.present() && (mask.rank != 4 || mask.shape[0] != s.batch || mask.shape[1] != mask_channels ||
                         mask.shape[2] != s.out_height || mask.shape[3] != s.out_width)) {
    fail(ErrorKind::kValue, kOp, "mask must be [N=", s.batch, ", groups*kh*kw=", mask_channels, ", ", s.out_height,
         ", ", s.out_width, "], got ", shape_text(mask));
  }
  if (bias.present() && (bias.rank != 1 || bias.shape[0] != s.out_channels)) {
    fail(ErrorKind::kValue, kOp, "bias must be [", s.out_channels, "], got ", shape_text(bias));
  }
  return s;
}

}  // namespace centermask
