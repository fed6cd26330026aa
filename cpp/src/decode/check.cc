#include "centermask/decode.h"
#include "centermask/error.h"
#include "device_check.h"

namespace centermask {

namespace {

constexpr const char* kOp = "decode_centers: ";

void check_output(const TensorView& view, const char* name, DType dtype, std::int64_t n, std::int64_t k, int rank) {
  const bool shape_ok = view.rank == rank && view.shape[0] == n && (rank == 1 || view.shape[1] == k);
  if (!shape_ok || !view.contiguous()) {
    if (rank == 1) fail(ErrorKind::kValue, kOp, name, " must be row-major [N=", n, "], got ", shape_text(view));
    fail(ErrorKind::kValue, kOp, name, " must be row-major [N=", n, ", K=", k, "], got ", shape_text(view));
  }
  if (view.dtype != dtype) {
    fail(ErrorKind::kType, kOp, name, " must be ", dtype_name(dtype), ", got ", dtype_name(view.dtype));
  }
}

}  // namespace

void check_decode_centers(const TensorView& heatmap, const DecodeParams& params, const TensorView& scores,
                          const TensorView& labels, const TensorView& index, const TensorView& count) {
  if (heatmap.rank != 4) fail(ErrorKind::kValue, kOp, "heatmap must be [N, C, H, W], got ", shape_text(heatmap));
  const bool cuda = heatmap.device.type == DeviceType::kCuda;
  if (cuda ? heatmap.dtype != DType::kFloat32 && heatmap.dtype != DType::kFloat16 && heatmap.dtype != DType::kBFloat16
           : heatmap.dtype != DType::kFloat32 && heatmap.dtype != DType::kFloat64) {
    fail(ErrorKind::kType, kOp, "heatmap must be ",
         cuda ? "float32, float16 or bfloat16 on CUDA, got " : "float32 or float64, got ", dtype_name(heatmap.dtype));
  }
  if (params.top_k < 1) fail(ErrorKind::kValue, kOp, "top_k must be >= 1, got ", params.top_k);
  if (!(params.score_threshold >= 0 && params.score_threshold <= 1)) {
    fail(ErrorKind::kValue, kOp, "score_threshold must be in [0, 1], got ", params.score_threshold);
  }
  const std::int64_t n = heatmap.shape[0];
  check_output(scores, "scores", cuda ? DType::kFloat32 : heatmap.dtype, n, params.top_k, 2);
  check_output(labels, "labels", DType::kInt64, n, params.top_k, 2);
  check_output(index, "index", DType::kInt64, n, params.top_k, 2);
  check_output(count, "count", DType::kInt64, n, 0, 1);
  check_same_device(kOp, "scores", scores, "heatmap", heatmap);
  check_same_device(kOp, "labels", labels, "heatmap", heatmap);
  check_same_device(kOp, "index", index, "heatmap", heatmap);
  check_same_device(kOp, "count", count, "heatmap", heatmap);
}

}  // namespace centermask
