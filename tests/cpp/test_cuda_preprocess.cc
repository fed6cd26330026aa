// preprocess_cuda computes what preprocess_cpu computes, at any scale and layout.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "centermask/preprocess.h"
#include "check.h"
#include "cuda_values.h"
#include "device_memory.h"

namespace {

using centermask::Device;
using centermask::DeviceType;
using centermask::DType;
using centermask::make_view;
using centermask::PreprocessParams;
using centermask::TensorView;

constexpr Device kCuda{DeviceType::kCuda, 0};

// The CPU's code may be contracted into fused multiply-adds where the baseline has them (aarch64): 5 operations on
// values of up to 255 / std, each within half a rounding. Where it has none, the results are the same bits.
double tolerance(const PreprocessParams& params) {
#if defined(__FMA__) || defined(__aarch64__)
  return 5 * 255 / params.std[0] * 6e-8;
#else
  return 0 * params.std[0];
#endif
}

struct Case {
  std::int64_t image_height, image_width, height, width;
  bool planar = false;  // the image's memory is [3, H, W]
  bool padded = false;  // the rows of both have gaps
};

template <class T>
void check_same(const Case& size, const PreprocessParams& params) {
  const std::int64_t gap = size.padded ? 5 : 0;
  std::mt19937 random(2);
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(size.image_height * (size.image_width * 3 + gap)));
  for (std::uint8_t& value : pixels) value = static_cast<std::uint8_t>(random());
  TensorView image = make_view(pixels.data(), DType::kUInt8, {size.image_height, size.image_width, 3});
  image.stride[0] += gap;
  if (size.planar) {
    image.stride[0] = size.image_width;
    image.stride[1] = 1;
    image.stride[2] = size.image_height * size.image_width;
  }
  const std::int64_t row = size.width + gap;
  const auto count = static_cast<std::size_t>(3 * size.height * row);
  std::vector<float> expected(count, -1);
  TensorView out = make_view(expected.data(), DType::kFloat32, {3, size.height, size.width});
  out.stride[1] = row;
  out.stride[0] = size.height * row;
  centermask::preprocess_cpu(image, params, out);

  const DeviceBuffer<std::uint8_t> device_pixels(pixels);
  DeviceBuffer<T> device_out(cuda_values::encoded<T>(std::vector<float>(count, -1)));
  image.data = device_pixels.data();
  out.data = device_out.data();
  out.dtype = cuda_values::dtype_of<T>();
  image.device = out.device = kCuda;
  centermask::preprocess_cuda(image, params, out, {});
  const std::vector<float> actual = cuda_values::decoded(device_out.download());
  const std::vector<float> rounded = cuda_values::decoded(cuda_values::encoded<T>(expected));
  // Two values that differ by so little may round to neighbouring float16.
  const double allowed = tolerance(params);
  for (std::size_t i = 0; i < count; ++i) {
    CHECK_NEAR(actual[i], rounded[i],
               allowed == 0 || sizeof(T) == 4 ? allowed : allowed + std::fabs(rounded[i]) / 1024);
  }
}

void test_scales() {
  for (double scale : {0.07, 0.5, 1.0, 1.3, 9.0, -1.0, -2.5}) {
    for (double shift : {-3.0, 0.0, 0.25, 11.0, 1e300}) {
      PreprocessParams params;
      params.image_to_input[0] = scale;
      params.image_to_input[4] = scale * 1.25;
      params.image_to_input[2] = shift;
      params.image_to_input[5] = -shift;
      params.mean[0] = 123.675;
      params.mean[2] = 103.53;
      params.std[0] = 58.395;
      params.std[1] = 57.12;
      params.swap_channels = shift > 0;
      check_same<float>({37, 29, 19, 67}, params);
      check_same<__half>({37, 29, 19, 67}, params);
    }
  }
}

void test_layouts_and_sizes() {
  PreprocessParams params;
  params.image_to_input[0] = params.image_to_input[4] = 0.4;
  params.image_to_input[2] = 1.5;
  for (bool planar : {false, true}) {
    for (bool padded : {false, true}) {
      check_same<float>({30, 21, 17, 65, planar, padded}, params);
      check_same<float>({1, 1, 1, 1, planar, padded}, params);
      check_same<__half>({3, 200, 33, 128, planar, padded}, params);
    }
  }
}

void test_errors() {
  DeviceBuffer<std::uint8_t> image(3);
  DeviceBuffer<float> out(3);
  float cpu_out[3];
  const TensorView pixels = make_view(image.data(), DType::kUInt8, {1, 1, 3}, kCuda);
  CHECK_FAILS(centermask::preprocess_cuda(pixels, {}, make_view(cpu_out, DType::kFloat32, {3, 1, 1}), {}),
              centermask::ErrorKind::kValue, "preprocess: out must be on the device of image (cuda:0), got cpu");
  CHECK_FAILS(centermask::preprocess_cuda(pixels, {}, make_view(out.data(), DType::kFloat64, {3, 1, 1}, kCuda), {}),
              centermask::ErrorKind::kType, "out must be float32 or float16, got float64");
}

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
  test_scales();
  test_layouts_and_sizes();
  test_errors();
  return check_result();
}
