// gather_patches from C++: every cell of a small map, borders included (run it under ASan).
#include <cstdint>
#include <limits>
#include <vector>

#include "centermask/gather.h"
#include "check.h"

namespace {

using centermask::DType;
using centermask::make_view;
using centermask::TensorView;

void test_every_cell() {
  constexpr std::int64_t F = 3, H = 4, W = 5, K = H * W + 2;
  std::vector<float> features(F * H * W);
  for (std::size_t i = 0; i < features.size(); ++i) features[i] = static_cast<float>(i + 1);
  std::vector<std::int64_t> index(K);
  for (std::int64_t k = 0; k < K; ++k) index[static_cast<std::size_t>(k)] = k;  // the last two are beyond the map
  index[K - 1] = std::numeric_limits<std::int64_t>::min();
  for (int threads : {1, 3}) {
    centermask::ThreadPool pool(threads);
    std::vector<float> patches(static_cast<std::size_t>(K * F * 9), -1);
    centermask::gather_patches_cpu(make_view(features.data(), DType::kFloat32, {1, F, H, W}),
                                   make_view(index.data(), DType::kInt64, {1, K}),
                                   make_view(patches.data(), DType::kFloat32, {1, K, F * 9}), pool.parallel_for());
    const float* value = patches.data();
    for (std::int64_t k = 0; k < K; ++k) {
      for (std::int64_t f = 0; f < F; ++f) {
        for (std::int64_t tap = 0; tap < 9; ++tap, ++value) {
          const std::int64_t y = k / W + tap / 3 - 1;
          const std::int64_t x = k % W + tap % 3 - 1;
          const bool inside = k < H * W && y >= 0 && y < H && x >= 0 && x < W;
          CHECK_NEAR(*value, inside ? static_cast<double>((f * H + y) * W + x + 1) : 0.0, 0);
        }
      }
    }
  }
}

void test_errors() {
  float features[4] = {};
  std::int64_t index[1] = {};
  float patches[9] = {};
  const TensorView map = make_view(features, DType::kFloat32, {1, 1, 2, 2});
  CHECK_FAILS(centermask::gather_patches_cpu(map, make_view(index, DType::kInt64, {1, 1}),
                                             make_view(patches, DType::kFloat32, {1, 1, 8})),
              centermask::ErrorKind::kValue, "patches must be row-major [N=1, K=1, F*9=9], got [1, 1, 8]");
  const centermask::Device cuda{centermask::DeviceType::kCuda, 0};
  CHECK_FAILS(centermask::gather_patches_cpu(make_view(features, DType::kFloat32, {1, 1, 2, 2}, cuda),
                                             make_view(index, DType::kInt64, {1, 1}, cuda),
                                             make_view(patches, DType::kFloat32, {1, 1, 9}, cuda)),
              centermask::ErrorKind::kUnsupported, "gather_patches: features must be on the CPU");
}

}  // namespace

int main() {
  test_every_cell();
  test_errors();
  return check_result();
}
