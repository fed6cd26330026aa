#include "deform_conv2d/backward_check.h"

#include "centermask/error.h"

namespace centermask::deform {
namespace {

void check_gradient(const TensorView& gradient, const TensorView& like, const char* name, bool channels_last_too) {
  if (!gradient.present()) return;
  bool fits = gradient.rank == like.rank && gradient.dtype == like.dtype && gradient.device == like.device &&
              (gradient.contiguous() || (channels_last_too && dense_channels_last(gradient)));
  for (int i = 0; fits && i < like.rank; ++i) fits = gradient.shape[i] == like.shape[i];
  if (!fits) {
    fail(ErrorKind::kValue, "deform_conv2d: the gradient of ", name, " must be row-major ",
         channels_last_too ? "or dense channels-last " : "", dtype_name(like.dtype), " ", shape_text(like),
         " on the device of ", name, ", got ", dtype_name(gradient.dtype), " ", shape_text(gradient));
  }
}

}  // namespace

bool dense_channels_last(const TensorView& view) {
  if (view.rank != 4) return false;
  constexpr int kOrder[4] = {1, 3, 2, 0};
  std::int64_t expected = 1;
  for (int axis : kOrder) {
    if (view.shape[axis] != 1 && view.stride[axis] != expected) return false;
    expected *= view.shape[axis];
  }
  return true;
}

void check_backward_arguments(const DeformConv2dShape& s, const TensorView& grad_output, const TensorView& x,
                              const TensorView& weight, const TensorView& offset, const TensorView& mask,
                              const DeformConv2dGradients& gradients) {
  if (grad_output.rank != 4 || grad_output.shape[0] != s.batch || grad_output.shape[1] != s.out_channels ||
      grad_output.shape[2] != s.out_height || grad_output.shape[3] != s.out_width) {
    fail(ErrorKind::kValue, "deform_conv2d: grad_output must be [", s.batch, ", ", s.out_channels, ", ", s.out_height,
         ", ", s.out_width, "], got ", shape_text(grad_output));
  }
  if (grad_output.dtype != s.dtype) {
    fail(ErrorKind::kType, "deform_conv2d: grad_output must be ", dtype_name(s.dtype), " as x is, got ",
         dtype_name(grad_output.dtype));
  }
  if (grad_output.device != x.device) {
    fail(ErrorKind::kValue, "deform_conv2d: grad_output must be on the device of x");
  }
  check_gradient(gradients.x, x, "x", x.device.type == DeviceType::kCuda);
  check_gradient(gradients.weight, weight, "weight", false);
  check_gradient(gradients.offset, offset, "offset", false);
  if (gradients.mask.present() && !mask.present()) {
    fail(ErrorKind::kValue, "deform_conv2d: there is no mask to take the gradient of");
  }
  if (mask.present()) check_gradient(gradients.mask, mask, "mask", false);
  check_gradient(gradients.bias, make_view(nullptr, s.dtype, {s.out_channels}, x.device), "bias", false);
}

}  // namespace centermask::deform
