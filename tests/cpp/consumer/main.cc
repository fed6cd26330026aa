// The area of a mask, by the installed library, and whether its operators for ONNX Runtime load: 0 if all is right.
#include <centermask/rle.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>

int main() {
  std::uint8_t bitmap[6] = {0, 1, 1, 0, 1, 0};
  std::uint32_t runs[7] = {};
  auto pixels = centermask::make_view(bitmap, centermask::DType::kUInt8, {2, 3});
  const auto count = centermask::rle_encode(pixels, centermask::make_view(runs, centermask::DType::kUInt32, {7}));
  const auto area = centermask::rle_area(centermask::make_view(runs, centermask::DType::kUInt32, {count}));
  std::printf("%lld runs, %lld pixels inside\n", static_cast<long long>(count), static_cast<long long>(area));

  void* operators = dlopen(OPERATORS, RTLD_NOW | RTLD_LOCAL);
  const bool registers = operators != nullptr && dlsym(operators, "RegisterCustomOps") != nullptr;
  std::printf("%s: %s\n", OPERATORS, registers ? "loads" : dlerror());
  return area == 3 && registers ? 0 : 1;
}
