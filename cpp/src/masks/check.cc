#include "masks/check.h"

#include <cmath>
#include <string>

#include "centermask/error.h"
#include "masks/kernels.h"

namespace centermask::masks {

namespace {

constexpr std::int64_t kMaxPixels = 4294967295;  // what 32-bit run lengths can count

std::string device_text(const Device& device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

// The type of each tensor is left to check_type(), or for mask_features and mask_params, check_floating().
void check_view(const TensorView& view, int rank, const Device& device, const char* op, const char* argument,
                const char* shape) {
  if (!view.present()) fail(ErrorKind::kType, op, ": ", argument, " is missing");
  if (view.device != device) {
    fail(ErrorKind::kValue, op, ": ", argument, " must be on ", device_text(device), ", where the call runs, got ",
         device_text(view.device));
  }
  if (view.rank != rank) {
    fail(ErrorKind::kValue, op, ": ", argument, " must be ", shape, ", got ", shape_text(view));
  }
}

void check_type(const TensorView& view, DType dtype, const char* op, const char* argument) {
  if (view.dtype != dtype) {
    fail(ErrorKind::kType, op, ": ", argument, " must be ", dtype_name(dtype), ", got ", dtype_name(view.dtype));
  }
}

void check_floating(const TensorView& view, const char* op, const char* argument) {
  if (view.device.type == DeviceType::kCpu) return check_type(view, DType::kFloat32, op, argument);
  if (view.dtype != DType::kFloat32 && view.dtype != DType::kFloat16 && view.dtype != DType::kBFloat16) {
    fail(ErrorKind::kType, op, ": ", argument, " must be float32, float16 or bfloat16, got ", dtype_name(view.dtype));
  }
}

}  // namespace

void check_params(const AssembleMasksParams& params, const char* op) {
  const std::int64_t height = params.image_height, width = params.image_width;
  if (height < 1 || width < 1 || width > kMaxPixels / height) {
    fail(ErrorKind::kValue, op, ": image_size must be [height, width] with 1..", kMaxPixels, " pixels, got [", height,
         ", ", width, "]");
  }
  const double* m = params.image_to_input;
  bool finite = true;
  for (int i = 0; i < 6; ++i) finite = finite && std::isfinite(m[i]);
  if (!finite || !(m[0] > 0) || !(m[4] > 0) || m[1] != 0 || m[3] != 0) {
    fail(ErrorKind::kValue, op, ": image_to_input must be [[a, 0, t], [0, b, s]], finite, with a, b > 0, got [[", m[0],
         ", ", m[1], ", ", m[2], "], [", m[3], ", ", m[4], ", ", m[5], "]]");
  }
  if (params.stride < 1) fail(ErrorKind::kValue, op, ": stride must be >= 1, got ", params.stride);
  if (!std::isfinite(params.threshold)) {
    fail(ErrorKind::kValue, op, ": threshold must be finite, got ", params.threshold);
  }
  if (!(params.box_margin >= 0) || !std::isfinite(params.box_margin)) {
    fail(ErrorKind::kValue, op, ": box_margin must be finite and >= 0, got ", params.box_margin);
  }
}

void check_boxes(const TensorView& boxes, const Device& device, const char* op) {
  check_view(boxes, 2, device, op, "boxes", "[I, 4]");
  check_type(boxes, DType::kFloat32, op, "boxes");
  if (boxes.shape[1] != 4) fail(ErrorKind::kValue, op, ": boxes must be [I, 4], got ", shape_text(boxes));
}

void check_inputs(const AssembleMasksParams& params, const AssembleMasksInputs& inputs, const Device& device,
                  const char* op) {
  check_params(params, op);
  check_boxes(inputs.boxes, device, op);
  const TensorView &features = inputs.mask_features, &mask_params = inputs.mask_params, &labels = inputs.labels;
  check_view(features, 3, device, op, "mask_features", "[M, h, w]");
  check_floating(features, op, "mask_features");
  check_view(mask_params, 2, device, op, "mask_params", "[I, P]");
  check_floating(mask_params, op, "mask_params");
  const bool dynamic = params.head == MaskHead::kDynamic;
  const std::int64_t channels = features.shape[0], count = inputs.boxes.shape[0];
  if (channels < 1 || features.shape[1] < 1 || features.shape[2] < 1 || (dynamic && channels != kMaskFeatures)) {
    fail(ErrorKind::kValue, op, ": mask_features must be [", dynamic ? "M=8" : "M>=1", ", h>=1, w>=1], got ",
         shape_text(features));
  }
  const std::int64_t columns = dynamic ? kDynamicParams : kShapeParams;
  if (mask_params.shape[0] != count || mask_params.shape[1] != columns) {
    fail(ErrorKind::kValue, op, ": mask_params must be [I=", count, ", P=", columns, "], got ",
         shape_text(mask_params));
  }
  if (dynamic || channels == 1) return;  // labels do not matter
  if (!labels.present()) {
    fail(ErrorKind::kType, op, ": labels is missing: int64 [I=", count, "], to choose among M=", channels,
         " mask_features");
  }
  check_view(labels, 1, device, op, "labels", "[I]");
  check_type(labels, DType::kInt64, op, "labels");
  if (labels.shape[0] != count) {
    fail(ErrorKind::kValue, op, ": labels must be [I=", count, "], got ", shape_text(labels));
  }
  if (device.type != DeviceType::kCpu) return;  // what is in device memory cannot be looked at without waiting
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t label = labels.ptr<const std::int64_t>()[i * labels.stride[0]];
    if (label >= channels) {
      fail(ErrorKind::kValue, op, ": labels must be below M=", channels, ", got ", label, " at ", i);
    }
  }
}

void check_output(const TensorView& view, DType dtype, std::int64_t size, const Device& device, const char* op,
                  const char* argument) {
  check_view(view, 1, device, op, argument, "one-dimensional");
  check_type(view, dtype, op, argument);
  if (!view.contiguous() || (size >= 0 && view.shape[0] != size)) {
    fail(ErrorKind::kValue, op, ": ", argument, " must be contiguous with ", size, " elements, got ", shape_text(view));
  }
}

void check_bitmaps(const TensorView& view, std::int64_t instances, std::int64_t height, std::int64_t row_bytes,
                   const Device& device, const char* op) {
  check_view(view, 3, device, op, "bitmaps", "[I, H, ceil(W / 8)]");
  check_type(view, DType::kUInt8, op, "bitmaps");
  if (view.shape[0] != instances || view.shape[1] != height || view.shape[2] != row_bytes || !view.contiguous()) {
    fail(ErrorKind::kValue, op, ": bitmaps must be contiguous [I=", instances, ", ", height, ", ", row_bytes, "], got ",
         shape_text(view));
  }
}

}  // namespace centermask::masks
