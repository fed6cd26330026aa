// The area of a mask, by the installed library: 0 if it is right.
#include <centermask/rle.h>

#include <cstdint>
#include <cstdio>

int main() {
  std::uint8_t bitmap[6] = {0, 1, 1, 0, 1, 0};
  std::uint32_t runs[7] = {};
  auto pixels = centermask::make_view(bitmap, centermask::DType::kUInt8, {2, 3});
  const auto count = centermask::rle_encode(pixels, centermask::make_view(runs, centermask::DType::kUInt32, {7}));
  const auto area = centermask::rle_area(centermask::make_view(runs, centermask::DType::kUInt32, {count}));
  std::printf("%lld runs, %lld pixels inside\n", static_cast<long long>(count), static_cast<long long>(area));
  return area == 3 ? 0 : 1;
}
