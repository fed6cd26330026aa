#include "centermask/error.h"
#include "centermask/gather.h"
#include "device_check.h"

namespace centermask {

void check_gather_patches(const TensorView& features, const TensorView& index, const TensorView& patches) {
  constexpr const char* op = "gather_patches: ";
  if (features.rank != 4) fail(ErrorKind::kValue, op, "features must be [N, F, H, W], got ", shape_text(features));
  const bool cuda = features.device.type == DeviceType::kCuda;
  if (cuda
          ? features.dtype != DType::kFloat32 && features.dtype != DType::kFloat16 && features.dtype != DType::kBFloat16
          : features.dtype != DType::kFloat32 && features.dtype != DType::kFloat64) {
    fail(ErrorKind::kType, op, "features must be ",
         cuda ? "float32, float16 or bfloat16 on CUDA, got " : "float32 or float64, got ", dtype_name(features.dtype));
  }
  const std::int64_t n = features.shape[0];
  if (index.rank != 2 || index.shape[0] != n) {
    fail(ErrorKind::kValue, op, "index must be [N=", n, ", K], got ", shape_text(index));
  }
  if (index.dtype != DType::kInt64) fail(ErrorKind::kType, op, "index must be int64, got ", dtype_name(index.dtype));
  const std::int64_t k = index.shape[1];
  const std::int64_t columns = features.shape[1] * 9;
  if (patches.rank != 3 || patches.shape[0] != n || patches.shape[1] != k || patches.shape[2] != columns ||
      !patches.contiguous()) {
    fail(ErrorKind::kValue, op, "patches must be row-major [N=", n, ", K=", k, ", F*9=", columns, "], got ",
         shape_text(patches));
  }
  if (patches.dtype != features.dtype) {
    fail(ErrorKind::kType, op, "patches must be ", dtype_name(features.dtype), " as the features, got ",
         dtype_name(patches.dtype));
  }
  check_same_device(op, "index", index, "features", features);
  check_same_device(op, "patches", patches, "features", features);
}

}  // namespace centermask
