#include "masks/check.h"

#include <cmath>

#include "centermask/error.h"
#include "masks/kernels.h"

namespace centermask::masks {

namespace {

constexpr std::int64_t kMaxPixels = 4294967295;  // what 32-bit run lengths can count

void check_view(const TensorView& view, DType dtype, int rank, const char* op, const char* argument,
                const char* shape) {
  if (!view.present()) fail(ErrorKind::kType, op, ": ", argument, " is missing");
  if (view.device.type != DeviceType::kCpu) fail(ErrorKind::kUnsupported, op, ": ", argument, " must be on the CPU");
  if (view.dtype != dtype) {
    fail(ErrorKind::kType, op, ": ", argument, " must be ", dtype_name(dtype), ", got ", dtype_name(view.dtype));
  }
  if (view.rank != rank) {
    fail(ErrorKind::kValue, op, ": ", argument, " must be ", shape, ", got ", shape_text(view));
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

void check_boxes(const TensorView& boxes, const char* op) {
  check_view(boxes, DType::kFloat32, 2, op, "boxes", "[I, 4]");
  if (boxes.shape[1] != 4) fail(ErrorKind::kValue, op, ": boxes must be [I, 4], got ", shape_text(boxes));
}

void check_inputs(const AssembleMasksParams& params, const AssembleMasksInputs& inputs, const char* op) {
  check_params(params, op);
  check_boxes(inputs.boxes, op);
  const TensorView &features = inputs.mask_features, &mask_params = inputs.mask_params, &labels = inputs.labels;
  check_view(features, DType::kFloat32, 3, op, "mask_features", "[M, h, w]");
  check_view(mask_params, DType::kFloat32, 2, op, "mask_params", "[I, P]");
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
  check_view(labels, DType::kInt64, 1, op, "labels", "[I]");
  if (labels.shape[0] != count) {
    fail(ErrorKind::kValue, op, ": labels must be [I=", count, "], got ", shape_text(labels));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t label = labels.ptr<const std::int64_t>()[i * labels.stride[0]];
    if (label >= channels) {
      fail(ErrorKind::kValue, op, ": labels must be below M=", channels, ", got ", label, " at ", i);
    }
  }
}

void check_output(const TensorView& view, DType dtype, std::int64_t size, const char* op, const char* argument) {
  check_view(view, dtype, 1, op, argument, "one-dimensional");
  if (!view.contiguous() || (size >= 0 && view.shape[0] != size)) {
    fail(ErrorKind::kValue, op, ": ", argument, " must be contiguous with ", size, " elements, got ", shape_text(view));
  }
}

}  // namespace centermask::masks
