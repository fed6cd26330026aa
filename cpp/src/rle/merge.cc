// Union and intersection.
#include <algorithm>
#include <limits>
#include <utility>

#include "centermask/rle.h"
#include "rle/runs.h"

namespace centermask {

namespace {

rle::Toggles toggles_of(rle::Runs runs) {
  rle::Toggles toggles;
  toggles.reserve(static_cast<std::size_t>(runs.count));
  std::uint32_t position = 0;
  for (std::int64_t i = 0; i + 1 < runs.count; ++i) {
    position += runs.data[i];
    rle::toggle_at(toggles, position);  // an empty run in between joins its neighbours
  }
  return toggles;
}

void combine(const rle::Toggles& a, const rle::Toggles& b, bool intersect, rle::Toggles& out) {
  constexpr std::uint64_t kEnd = std::numeric_limits<std::uint64_t>::max();
  out.clear();
  std::size_t i = 0, j = 0;
  bool inside = false;
  while (i < a.size() || j < b.size()) {
    const std::uint64_t next_a = i < a.size() ? a[i] : kEnd;
    const std::uint64_t next_b = j < b.size() ? b[j] : kEnd;
    const std::uint64_t position = std::min(next_a, next_b);
    if (next_a == position) ++i;
    if (next_b == position) ++j;
    const bool in_a = i % 2 == 1, in_b = j % 2 == 1;
    const bool now = intersect ? in_a && in_b : in_a || in_b;
    if (now != inside) out.push_back(static_cast<std::uint32_t>(position));
    inside = now;
  }
}

}  // namespace

std::int64_t rle_merge(const RleBatch& masks, bool intersect, const TensorView& merged) {
  constexpr const char* op = "rle_merge";
  const rle::Runs all = rle::checked_runs(masks.runs, op, "runs");
  rle::check_offsets(masks.offsets, all.count, op, "offsets");
  rle::check_vector(merged, DType::kUInt32, op, "merged");
  const std::int64_t count = masks.offsets.shape[0] - 1;
  if (count < 1) fail(ErrorKind::kValue, op, ": at least one mask is needed, got none");
  const auto* offsets = masks.offsets.ptr<const std::int64_t>();
  auto runs_at = [&](std::int64_t i) { return rle::Runs{all.data + offsets[i], offsets[i + 1] - offsets[i]}; };
  const std::int64_t pixels = rle::total(runs_at(0));
  if (pixels > kMaxRlePixels) fail(ErrorKind::kValue, op, ": mask 0 has ", pixels, " pixels, at most ", kMaxRlePixels);
  for (std::int64_t i = 1; i < count; ++i) {
    const std::int64_t other = rle::total(runs_at(i));
    if (other != pixels) {
      fail(ErrorKind::kValue, op, ": masks must have one size, got ", pixels, " pixels in mask 0 and ", other,
           " in mask ", i);
    }
  }
  rle::Toggles result = toggles_of(runs_at(0)), scratch;
  for (std::int64_t i = 1; i < count; ++i) {
    combine(result, toggles_of(runs_at(i)), intersect, scratch);
    std::swap(result, scratch);
  }
  rle::RunWriter writer(merged);
  rle::write_runs(result, pixels, writer);
  return writer.count();
}

}  // namespace centermask
