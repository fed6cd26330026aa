// The text form of run lengths.
#include "centermask/rle.h"
#include "rle/runs.h"

namespace centermask {

namespace {

constexpr int kGroupBits = 5;
constexpr int kMore = 1 << kGroupBits;        // set where another group follows
constexpr int kSign = 1 << (kGroupBits - 1);  // of the last group: the number is negative
constexpr int kFirstCharacter = 48;
constexpr int kMaxGroups = 12;  // 60 bits: no valid number needs more than 7 groups, and none can overflow

}  // namespace

std::int64_t rle_to_string(const TensorView& runs, const TensorView& text) {
  constexpr const char* op = "rle_to_string";
  const rle::Runs in = rle::checked_runs(runs, op, "runs");
  rle::check_vector(text, DType::kUInt8, op, "text");
  auto* out = text.ptr<std::uint8_t>();
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < in.count; ++i) {
    std::int64_t value = in.data[i];
    if (i > 2) value -= in.data[i - 2];
    for (bool more = true; more;) {
      int group = static_cast<int>(value & (kMore - 1));
      value >>= kGroupBits;
      more = value != ((group & kSign) != 0 ? -1 : 0);
      if (more) group |= kMore;
      if (count < text.shape[0]) out[count] = static_cast<std::uint8_t>(group + kFirstCharacter);
      ++count;
    }
  }
  return count;
}

std::int64_t rle_from_string(const TensorView& text, std::int64_t height, std::int64_t width, const TensorView& runs) {
  constexpr const char* op = "rle";
  const std::int64_t pixels = rle::pixel_count(op, height, width);
  rle::check_vector(text, DType::kUInt8, op, "counts");
  rle::check_vector(runs, DType::kUInt32, op, "runs");
  const auto* in = text.ptr<const std::uint8_t>();
  const std::int64_t length = text.shape[0];
  rle::RunWriter writer(runs);
  // The last two runs: from the fourth on, a number is the difference from the run two before.
  std::int64_t before[2] = {0, 0};
  std::int64_t sum = 0;
  for (std::int64_t at = 0; at < length;) {
    const std::int64_t begin = at;
    std::int64_t value = 0;
    for (int groups = 0;; ++groups) {
      if (at == length) fail(ErrorKind::kValue, op, ": counts end within a number that starts at byte ", begin);
      if (groups == kMaxGroups) fail(ErrorKind::kValue, op, ": counts hold a number of too many bytes at byte ", begin);
      const int code = in[at] - kFirstCharacter;
      if (code < 0 || code >= 2 * kMore) {
        fail(ErrorKind::kValue, op, ": counts must hold characters from '0' to 'o', got byte ", int{in[at]},
             " at position ", at);
      }
      ++at;
      value |= static_cast<std::int64_t>(code & (kMore - 1)) << (kGroupBits * groups);
      if ((code & kMore) != 0) continue;
      if ((code & kSign) != 0) value -= std::int64_t{1} << (kGroupBits * (groups + 1));
      break;
    }
    const std::int64_t index = writer.count();
    if (index > 2) value += before[0];
    if (value < 0 || value > pixels - sum) {
      fail(ErrorKind::kValue, op, ": counts do not fit a mask of ", height, " * ", width, " = ", pixels,
           " pixels: run ", index, " is ", value, " after ", sum, " pixels");
    }
    sum += value;
    writer.push(static_cast<std::uint32_t>(value));
    before[0] = before[1];
    before[1] = value;
  }
  if (sum != pixels) {
    fail(ErrorKind::kValue, op, ": counts must add up to height * width = ", height, " * ", width, " = ", pixels,
         ", got ", sum);
  }
  return writer.count();
}

}  // namespace centermask
