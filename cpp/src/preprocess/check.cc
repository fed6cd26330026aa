#include <cmath>

#include "centermask/error.h"
#include "centermask/preprocess.h"
#include "device_check.h"

namespace centermask {

void check_preprocess(const TensorView& image, const PreprocessParams& params, const TensorView& out) {
  constexpr const char* op = "preprocess: ";
  if (image.rank != 3 || image.shape[0] < 1 || image.shape[1] < 1 || image.shape[2] != 3) {
    fail(ErrorKind::kValue, op, "image must be [H >= 1, W >= 1, 3], got ", shape_text(image));
  }
  if (image.dtype != DType::kUInt8) fail(ErrorKind::kType, op, "image must be uint8, got ", dtype_name(image.dtype));
  if (out.rank != 3 || out.shape[0] != 3 || out.shape[1] < 1 || out.shape[2] < 1) {
    fail(ErrorKind::kValue, op, "out must be [3, h >= 1, w >= 1], got ", shape_text(out));
  }
  const bool cuda = out.device.type == DeviceType::kCuda;
  if (out.dtype != DType::kFloat32 && !(cuda && out.dtype == DType::kFloat16)) {
    fail(ErrorKind::kType, op, "out must be ", cuda ? "float32 or float16, got " : "float32, got ",
         dtype_name(out.dtype));
  }
  if (out.shape[2] > 1 && out.stride[2] != 1) {
    fail(ErrorKind::kValue, op, "out must have adjacent pixels in each row, got a stride of ", out.stride[2]);
  }
  check_same_device(op, "out", out, "image", image);
  const double* matrix = params.image_to_input;
  for (int i = 0; i < 6; ++i) {
    if (!std::isfinite(matrix[i])) fail(ErrorKind::kValue, op, "image_to_input must be finite, got ", matrix[i]);
  }
  if (matrix[1] != 0 || matrix[3] != 0 || matrix[0] == 0 || matrix[4] == 0) {
    fail(ErrorKind::kValue, op, "image_to_input must be [[a, 0, t], [0, b, s]] with a and b not 0, got [[", matrix[0],
         ", ", matrix[1], ", ", matrix[2], "], [", matrix[3], ", ", matrix[4], ", ", matrix[5], "]]");
  }
  for (int c = 0; c < 3; ++c) {
    if (!std::isfinite(params.mean[c])) fail(ErrorKind::kValue, op, "mean must be finite, got ", params.mean[c]);
    if (!std::isfinite(params.std[c]) || params.std[c] <= 0) {
      fail(ErrorKind::kValue, op, "std must be finite and > 0, got ", params.std[c]);
    }
  }
}

}  // namespace centermask
