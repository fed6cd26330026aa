#include "centermask/rle.h"
#include "rle/runs.h"

namespace centermask::rle {

std::int64_t pixel_count(const char* op, std::int64_t height, std::int64_t width) {
  if (height < 0 || width < 0 || (height != 0 && width > kMaxRlePixels / height)) {
    fail(ErrorKind::kValue, op, ": size must be [height, width] with height * width in 0..", kMaxRlePixels, ", got [",
         height, ", ", width, "]");
  }
  return height * width;
}

void check_vector(const TensorView& view, DType dtype, const char* op, const char* argument) {
  if (!view.present()) fail(ErrorKind::kType, op, ": ", argument, " is missing");
  if (view.device.type != DeviceType::kCpu) fail(ErrorKind::kUnsupported, op, ": ", argument, " must be on the CPU");
  if (view.dtype != dtype) {
    fail(ErrorKind::kType, op, ": ", argument, " must be ", dtype_name(dtype), ", got ", dtype_name(view.dtype));
  }
  if (view.rank != 1 || !view.contiguous()) {
    fail(ErrorKind::kValue, op, ": ", argument, " must be contiguous with one dimension, got ", shape_text(view));
  }
}

Runs checked_runs(const TensorView& view, const char* op, const char* argument) {
  check_vector(view, DType::kUInt32, op, argument);
  return {view.ptr<const std::uint32_t>(), view.shape[0]};
}

std::int64_t total(Runs runs) {
  std::int64_t sum = 0;  // cannot overflow: fewer than 2^31 runs of fewer than 2^32 pixels fit any memory
  for (std::int64_t i = 0; i < runs.count; ++i) sum += runs.data[i];
  return sum;
}

void check_total(Runs runs, std::int64_t height, std::int64_t width, const char* op, const char* argument) {
  const std::int64_t pixels = pixel_count(op, height, width);
  const std::int64_t sum = total(runs);
  if (sum != pixels) {
    fail(ErrorKind::kValue, op, ": ", argument, " must add up to height * width = ", height, " * ", width, " = ",
         pixels, ", got ", sum);
  }
}

void check_offsets(const TensorView& offsets, std::int64_t length, const char* op, const char* argument) {
  check_vector(offsets, DType::kInt64, op, argument);
  const auto* values = offsets.ptr<const std::int64_t>();
  const std::int64_t count = offsets.shape[0];
  if (count < 1 || values[0] != 0) fail(ErrorKind::kValue, op, ": ", argument, " must start with 0");
  for (std::int64_t i = 1; i < count; ++i) {
    if (values[i] < values[i - 1]) {
      fail(ErrorKind::kValue, op, ": ", argument, " must not fall, got ", values[i - 1], " and then ", values[i]);
    }
  }
  if (values[count - 1] > length) {
    fail(ErrorKind::kValue, op, ": ", argument, " must end at most at ", length, ", got ", values[count - 1]);
  }
}

}  // namespace centermask::rle

namespace centermask {

void rle_check(const TensorView& runs, std::int64_t height, std::int64_t width) {
  rle::check_total(rle::checked_runs(runs, "rle", "counts"), height, width, "rle", "counts");
}

}  // namespace centermask
