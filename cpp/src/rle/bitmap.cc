// Bitmaps to runs and back. Arrays mostly come row by row while runs go column by column, so rows are compared with
// the row above, eight pixels at a time, and only changes are carried over into the columns.
#include <algorithm>
#include <cstring>
#include <vector>

#include "centermask/rle.h"
#include "rle/runs.h"

namespace centermask {

namespace {

constexpr std::uint64_t kLow7 = 0x7f7f7f7f7f7f7f7fULL;

// Bytes with the top bit set where `word` has a byte other than 0.
inline std::uint64_t inside_bits(std::uint64_t word) { return (((word & kLow7) + kLow7) | word) & ~kLow7; }

inline std::uint64_t load(const std::uint8_t* from) {
  std::uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

struct Bitmap {
  std::uint8_t* data;
  std::int64_t height, width, row, column;  // the last two: strides
  std::uint8_t* at(std::int64_t y, std::int64_t x) const { return data + y * row + x * column; }
};

Bitmap checked_bitmap(const TensorView& view, const char* op) {
  if (!view.present()) fail(ErrorKind::kType, op, ": bitmap is missing");
  if (view.device.type != DeviceType::kCpu) fail(ErrorKind::kUnsupported, op, ": bitmap must be on the CPU");
  if (view.dtype != DType::kUInt8) {
    fail(ErrorKind::kType, op, ": bitmap must be uint8 or bool, got ", dtype_name(view.dtype));
  }
  if (view.rank != 2) fail(ErrorKind::kValue, op, ": bitmap must be [H, W], got ", shape_text(view));
  rle::pixel_count(op, view.shape[0], view.shape[1]);
  return {view.ptr<std::uint8_t>(), view.shape[0], view.shape[1], view.stride[0], view.stride[1]};
}

// Calls found(y, x) for every pixel that differs from the one before it in reading order; each column from the top.
template <class Found>
void for_changes_by_rows(const Bitmap& bitmap, Found found) {
  const std::int64_t width = bitmap.width;
  // Above the top row stands the bottom row, one column to the left.
  std::vector<std::uint8_t> above(static_cast<std::size_t>(width), 0);
  std::memcpy(above.data() + 1, bitmap.at(bitmap.height - 1, 0), static_cast<std::size_t>(width - 1));
  const std::uint8_t* previous = above.data();
  for (std::int64_t y = 0; y < bitmap.height; ++y) {
    const std::uint8_t* current = bitmap.at(y, 0);
    std::int64_t x = 0;
    for (; x + 8 <= width; x += 8) {
      const std::uint64_t change = inside_bits(load(current + x)) ^ inside_bits(load(previous + x));
      if (change == 0) continue;
      for (int i = 0; i < 8; ++i) {
        if ((current[x + i] != 0) != (previous[x + i] != 0)) found(y, x + i);
      }
    }
    for (; x < width; ++x) {
      if ((current[x] != 0) != (previous[x] != 0)) found(y, x);
    }
    previous = current;
  }
}

std::int64_t encode_by_rows(const Bitmap& bitmap, const TensorView& runs) {
  // First how many changes each column has, then where: no list of unknown length is needed.
  std::vector<std::int64_t> next(static_cast<std::size_t>(bitmap.width) + 1, 0);
  for_changes_by_rows(bitmap, [&](std::int64_t, std::int64_t x) { ++next[static_cast<std::size_t>(x) + 1]; });
  for (std::size_t x = 1; x < next.size(); ++x) next[x] += next[x - 1];
  const std::int64_t changes = next.back();
  if (changes + 1 > runs.shape[0]) return changes + 1;
  auto* out = runs.ptr<std::uint32_t>();
  for_changes_by_rows(bitmap, [&](std::int64_t y, std::int64_t x) {
    std::int64_t& place = next[static_cast<std::size_t>(x)];
    // Always true, unless another thread writes to the bitmap meanwhile.
    if (place < changes) out[place++] = static_cast<std::uint32_t>(x * bitmap.height + y);
  });
  out[changes] = static_cast<std::uint32_t>(bitmap.height * bitmap.width);
  for (std::int64_t i = changes; i > 0; --i) out[i] -= out[i - 1];
  return changes + 1;
}

std::int64_t encode_by_columns(const Bitmap& bitmap, const TensorView& runs) {
  rle::RunWriter writer(runs);
  std::uint32_t run = 0;
  bool inside = false;
  for (std::int64_t x = 0; x < bitmap.width; ++x) {
    const std::uint8_t* pixel = bitmap.at(0, x);
    for (std::int64_t y = 0; y < bitmap.height; ++y, pixel += bitmap.row) {
      if ((*pixel != 0) != inside) {
        writer.push(run);
        run = 0;
        inside = !inside;
      }
      ++run;
    }
  }
  writer.push(run);
  return writer.count();
}

void fill(const Bitmap& bitmap, std::int64_t x, std::int64_t y0, std::int64_t y1, std::uint8_t value) {
  std::uint8_t* pixel = bitmap.at(y0, x);
  if (bitmap.row == 1) {
    std::memset(pixel, value, static_cast<std::size_t>(y1 - y0));
    return;
  }
  for (std::int64_t y = y0; y < y1; ++y, pixel += bitmap.row) *pixel = value;
}

}  // namespace

std::int64_t rle_encode(const TensorView& bitmap, const TensorView& runs) {
  const Bitmap in = checked_bitmap(bitmap, "rle_encode");
  rle::check_vector(runs, DType::kUInt32, "rle_encode", "runs");
  if (in.height > 0 && in.width > 0 && in.column == 1) return encode_by_rows(in, runs);
  return encode_by_columns(in, runs);
}

void rle_decode(const TensorView& runs, const TensorView& bitmap) {
  constexpr const char* op = "rle_decode";
  const Bitmap out = checked_bitmap(bitmap, op);
  const rle::Runs in = rle::checked_runs(runs, op, "runs");
  rle::check_total(in, out.height, out.width, op, "runs");
  if (out.height == 0 || out.width == 0) return;
  if (out.column == 1) {
    for (std::int64_t y = 0; y < out.height; ++y) std::memset(out.at(y, 0), 0, static_cast<std::size_t>(out.width));
  } else {
    for (std::int64_t x = 0; x < out.width; ++x) fill(out, x, 0, out.height, 0);
  }
  std::int64_t position = 0;
  for (std::int64_t i = 0; i < in.count; ++i) {
    const std::int64_t end = position + in.data[i];
    if (i % 2 == 1) {
      for (std::int64_t x = position / out.height; position < end; ++x) {
        const std::int64_t column_end = std::min(end, (x + 1) * out.height);
        fill(out, x, position - x * out.height, column_end - x * out.height, 1);
        position = column_end;
      }
    }
    position = end;
  }
}

}  // namespace centermask
