// preprocess from C++: exact cases, every scale at the borders of the allocation (run it under ASan).
#include <cstdint>
#include <vector>

#include "centermask/preprocess.h"
#include "check.h"

namespace {

using centermask::DType;
using centermask::make_view;
using centermask::PreprocessParams;

void test_exact_halving() {
  // Output centres fall midway between pixels: each output is the mean of four.
  const std::uint8_t image[2][4][3] = {{{0, 10, 20}, {4, 10, 20}, {100, 0, 0}, {100, 0, 255}},
                                       {{8, 10, 20}, {12, 10, 24}, {100, 0, 0}, {104, 2, 255}}};
  float out[3][1][2];
  PreprocessParams params;
  params.image_to_input[0] = params.image_to_input[4] = 0.5;
  params.swap_channels = true;
  params.mean[0] = 1;
  params.std[0] = 2;
  centermask::preprocess_cpu(make_view(const_cast<std::uint8_t*>(&image[0][0][0]), DType::kUInt8, {2, 4, 3}), params,
                             make_view(out, DType::kFloat32, {3, 1, 2}));
  CHECK_NEAR(out[0][0][0], (21.0 - 1) / 2, 1e-6);
  CHECK_NEAR(out[0][0][1], (127.5 - 1) / 2, 1e-5);
  CHECK_NEAR(out[1][0][0], 10, 0);
  CHECK_NEAR(out[1][0][1], 0.5, 0);
  CHECK_NEAR(out[2][0][0], 6, 0);
  CHECK_NEAR(out[2][0][1], 101, 1e-5);
}

void test_constant_image_at_any_scale() {
  // Inside, any interpolation of a constant is that constant; far outside it is black.
  std::vector<std::uint8_t> image(7 * 5 * 3, 200);
  centermask::ThreadPool pool(3);
  for (double scale : {0.07, 0.5, 1.0, 1.3, 9.0, -1.0, -2.5}) {
    for (double shift : {-3.0, 0.0, 0.25, 11.0, 1e300}) {
      std::vector<float> out(3 * 13 * 17, -1);
      PreprocessParams params;
      params.image_to_input[0] = params.image_to_input[4] = scale;
      params.image_to_input[2] = params.image_to_input[5] = shift;
      centermask::preprocess_cpu(make_view(image.data(), DType::kUInt8, {7, 5, 3}), params,
                                 make_view(out.data(), DType::kFloat32, {3, 13, 17}), pool.parallel_for());
      for (std::int64_t i = 0; i < 3 * 13 * 17; ++i) {
        const double x = (static_cast<double>(i % 17) + 0.5 - shift) / scale;
        const double y = (static_cast<double>(i / 17 % 13) + 0.5 - shift) / scale;
        const float value = out[static_cast<std::size_t>(i)];
        if (x >= 0.5 && x <= 4.5 && y >= 0.5 && y <= 6.5) CHECK_NEAR(value, 200, 1e-4);
        if (x < -0.5 || x > 5.5 || y < -0.5 || y > 7.5) CHECK_NEAR(value, 0, 0);
        CHECK(value >= 0 && value <= 200.0001F);
      }
    }
  }
}

void test_errors() {
  std::uint8_t image[3] = {};
  float out[3] = {};
  PreprocessParams params;
  params.std[1] = 0;
  CHECK_FAILS(centermask::preprocess_cpu(make_view(image, DType::kUInt8, {1, 1, 3}), params,
                                         make_view(out, DType::kFloat32, {3, 1, 1})),
              centermask::ErrorKind::kValue, "preprocess: std must be finite and > 0, got 0");
  const centermask::Device cuda{centermask::DeviceType::kCuda, 0};
  CHECK_FAILS(centermask::preprocess_cpu(make_view(image, DType::kUInt8, {1, 1, 3}, cuda), {},
                                         make_view(out, DType::kFloat32, {3, 1, 1}, cuda)),
              centermask::ErrorKind::kUnsupported, "preprocess: image must be on the CPU");
}

}  // namespace

int main() {
  test_exact_halving();
  test_constant_image_at_any_scale();
  test_errors();
  return check_result();
}
