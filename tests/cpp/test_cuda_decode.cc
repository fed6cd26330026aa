// decode_centers_cuda gives what decode_centers_cpu gives, bit for bit, whatever the map, its layout and its dtype.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "centermask/decode.h"
#include "check.h"
#include "cuda_values.h"
#include "device_memory.h"

namespace {

using centermask::DecodeParams;
using centermask::Device;
using centermask::DeviceType;
using centermask::DType;
using centermask::make_view;
using centermask::TensorView;

constexpr Device kCuda{DeviceType::kCuda, 0};
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Result {
  std::vector<float> scores;
  std::vector<std::int64_t> labels, index, count;
};

// A heatmap in `memory` that starts at element `offset`.
struct Map {
  std::vector<float> memory;
  std::int64_t shape[4];
  std::int64_t stride[4];
  std::int64_t offset = 0;

  TensorView view(void* data, std::int64_t element, DType dtype, Device device) const {
    TensorView view = make_view(static_cast<char*>(data) + offset * element, dtype, {0, 0, 0, 0}, device);
    for (int i = 0; i < 4; ++i) view.shape[i] = shape[i];
    for (int i = 0; i < 4; ++i) view.stride[i] = stride[i];
    return view;
  }
};

using Value = std::function<float(std::int64_t n, std::int64_t c, std::int64_t y, std::int64_t x)>;

enum class Order { kRows, kPadded, kClassesLast, kMirrored };

Map make_map(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, const Value& value,
             Order order = Order::kRows) {
  Map map{{}, {n, c, h, w}, {c * h * w, h * w, w, 1}};
  std::int64_t size = n * c * h * w;
  if (order == Order::kPadded) {  // rows that are not aligned to anything
    map.offset = 3;
    map.stride[2] = w + 1;
    map.stride[1] = h * (w + 1) + 2;
    map.stride[0] = c * map.stride[1];
    size = n * map.stride[0] + 3;
  } else if (order == Order::kClassesLast) {
    map.stride[0] = c * h * w;
    map.stride[1] = 1;
    map.stride[2] = w * c;
    map.stride[3] = c;
  } else if (order == Order::kMirrored) {
    map.stride[3] = -1;
    map.offset = w - 1;
  }
  map.memory.assign(static_cast<std::size_t>(size), kNan);
  for (std::int64_t i = 0; i < n * c * h * w; ++i) {
    const std::int64_t at[4] = {i / (c * h * w), i / (h * w) % c, i / w % h, i % w};
    std::int64_t where = map.offset;
    for (int axis = 0; axis < 4; ++axis) where += at[axis] * map.stride[axis];
    map.memory[static_cast<std::size_t>(where)] = value(at[0], at[1], at[2], at[3]);
  }
  return map;
}

// Both devices, compared. T is the dtype on the device; the CPU gets the same values as float32.
template <class T = float>
Result check_same(const Map& map, std::int64_t k, double threshold) {
  const std::int64_t n = map.shape[0];
  const auto rows = static_cast<std::size_t>(n * k);
  DecodeParams params;
  params.top_k = k;
  params.score_threshold = threshold;

  const std::vector<T> values = cuda_values::encoded<T>(map.memory);
  std::vector<float> rounded = cuda_values::decoded(values);
  Result expected{std::vector<float>(rows), std::vector<std::int64_t>(rows), std::vector<std::int64_t>(rows),
                  std::vector<std::int64_t>(static_cast<std::size_t>(n))};
  centermask::decode_centers_cpu(map.view(rounded.data(), 4, DType::kFloat32, {}), params,
                                 make_view(expected.scores.data(), DType::kFloat32, {n, k}),
                                 make_view(expected.labels.data(), DType::kInt64, {n, k}),
                                 make_view(expected.index.data(), DType::kInt64, {n, k}),
                                 make_view(expected.count.data(), DType::kInt64, {n}));

  const DeviceBuffer<T> memory(values);
  DeviceBuffer<float> scores(rows);
  DeviceBuffer<std::int64_t> labels(rows), index(rows), count(static_cast<std::size_t>(n));
  const TensorView heatmap =
      map.view(memory.data(), static_cast<std::int64_t>(sizeof(T)), cuda_values::dtype_of<T>(), kCuda);
  DeviceBuffer<unsigned char> workspace(centermask::decode_centers_workspace_cuda(heatmap, params));
  centermask::decode_centers_cuda(
      heatmap, params, {workspace.data(), workspace.size()}, make_view(scores.data(), DType::kFloat32, {n, k}, kCuda),
      make_view(labels.data(), DType::kInt64, {n, k}, kCuda), make_view(index.data(), DType::kInt64, {n, k}, kCuda),
      make_view(count.data(), DType::kInt64, {n}, kCuda), {});
  CHECK(count.download() == expected.count);
  CHECK(labels.download() == expected.labels);
  CHECK(index.download() == expected.index);
  CHECK(cuda_values::same_bits(scores.download(), expected.scores));
  return expected;
}

Value noise(unsigned seed, float grain) {  // with many ties if the grain is coarse
  auto random = std::make_shared<std::mt19937>(seed);
  return [random, grain](auto...) {
    std::normal_distribution<float> normal(0, 2);
    return std::round(normal(*random) / grain) * grain;
  };
}

void test_noise_of_any_size_layout_and_dtype() {
  const std::int64_t sizes[][4] = {{2, 3, 20, 24}, {1, 1, 1, 1}, {2, 5, 1, 9},   {1, 40, 2, 1}, {3, 2, 33, 37},
                                   {1, 7, 13, 4},  {2, 1, 5, 3}, {1, 2, 129, 6}, {1, 3, 6, 131}};
  unsigned seed = 0;
  for (const auto& size : sizes) {
    for (Order order : {Order::kRows, Order::kPadded, Order::kClassesLast, Order::kMirrored}) {
      if (order == Order::kMirrored && size[0] * size[1] * size[2] > 1000) continue;
      ++seed;
      const Map map = make_map(size[0], size[1], size[2], size[3], noise(seed, seed % 2 ? 0.5F : 1e-6F), order);
      check_same(map, seed % 3 == 0 ? 7 : 100, seed % 4 == 0 ? 0.0 : 0.3);
      check_same<__half>(map, 31, 0.0);
      check_same<__nv_bfloat16>(map, 31, 0.5);
    }
  }
}

void test_top_k() {
  const Map map = make_map(2, 4, 40, 48, noise(3, 0.25F));  // 7680 cells
  for (std::int64_t k : {1, 2, 31, 512, 1000, 4096, 4097, 5000, 20000}) {
    check_same(map, k, 0.0);
    check_same(map, k, 0.6);
  }
  // More than two chunks of the sort in device memory, and more centres than one chunk.
  const Result all = check_same(make_map(2, 2, 80, 70, [](auto...) { return 1.0F; }), 11000, 0.0);
  CHECK(all.count[0] == 11000 && all.count[1] == 11000);
}

void test_thresholds() {
  const Map map = make_map(1, 2, 16, 16, noise(4, 0.5F));
  for (double threshold : {0.0, 1e-300, 0.05, 0.5, 0.622459331201855, 0.9999, 1.0}) check_same(map, 50, threshold);
  check_same(make_map(1, 1, 8, 8, [](auto, auto, auto y, auto x) { return y == 3 && x == 5 ? kInf : 50.0F; }), 9, 1.0);
}

void test_constant_maps() {
  for (float value : {0.0F, -0.0F, 3.0F, -7.5F, kInf, -kInf, kNan, 1e-42F, -std::numeric_limits<float>::max()}) {
    const Map map = make_map(2, 3, 24, 24, [value](auto...) { return value; });
    for (std::int64_t k : {1, 100, 1728, 3000}) check_same(map, k, 0.0);
    check_same<__half>(map, 10, 0.3);
  }
  // Two groups whose positions do not interleave: K at the seam.
  const Map seam = make_map(1, 1, 8, 128, [](auto...) { return 1.0F; });
  for (std::int64_t k : {511, 512, 513, 514}) check_same(seam, k, 0.0);
}

void test_special_values_mixed() {
  const float specials[] = {0.0F, -0.0F, kInf, -kInf, kNan, 1e-45F, -1e-45F, 2.0F, 2.0F, -2.0F};
  std::mt19937 random(6);
  const Value value = [&](auto...) { return specials[random() % 10]; };
  for (Order order : {Order::kRows, Order::kPadded, Order::kClassesLast}) {
    const Map map = make_map(3, 4, 19, 20, value, order);
    for (double threshold : {0.0, 0.5, 1.0}) check_same(map, 200, threshold);
    check_same<__half>(map, 2000, 0.0);
    check_same<__nv_bfloat16>(map, 64, 0.0);
  }
}

void test_crowded_peaks() {
  // All peaks in a corner, or in one class, of a map whose other cells are far below or below the threshold.
  std::mt19937 random(7);
  const auto corner = [&random](float rest) {
    return [&random, rest](auto, std::int64_t c, std::int64_t y, std::int64_t x) {
      if (c != 1 || y >= 70 || x >= 70) return rest;
      return y % 2 == 0 && x % 2 == 0 ? static_cast<float>(random() % 100000) / 9999.0F - 5 : -8.0F;
    };
  };
  for (float rest : {-9.0F, -kInf, kNan}) {
    const Map map = make_map(1, 2, 72, 144, corner(rest));
    for (std::int64_t k : {1, 10, 100, 1200}) {
      check_same(map, k, 0.0);
      check_same(map, k, 0.01);
    }
  }
  // More peaks that reach the bound than the list of one block holds: 7300 peaks in 64 groups, each with a low one.
  const Map many = make_map(1, 1, 256, 256, [&random](auto, auto, std::int64_t y, std::int64_t x) {
    if (y >= 128 || y % 2 != 0 || x % 2 != 0) return -9.0F;
    return y % 4 == 0 && x % 128 == 0 ? -6.0F : static_cast<float>(random() % 100000) / 9999.0F;
  });
  for (std::int64_t k : {70, 100, 1000}) check_same(many, k, 0.1 * 0.01);
}

void test_plateaus() {
  // Padding of one value beside real peaks, as the maps of padded photographs have it.
  std::mt19937 random(8);
  std::normal_distribution<float> normal(-3, 1);
  const Map map = make_map(2, 6, 64, 64, [&](auto, auto, auto y, auto) { return y < 30 ? normal(random) : -4.59512F; });
  for (std::int64_t k : {20, 100, 700, 5000}) check_same(map, k, 0.0);
}

void test_empty() {
  const auto nothing = [](auto...) { return 0.0F; };
  check_same(make_map(0, 3, 8, 8, nothing), 5, 0.0);
  check_same(make_map(2, 0, 8, 8, nothing), 5, 0.0);
  check_same(make_map(2, 3, 0, 8, nothing), 5000, 0.0);
  check_same(make_map(1, 3, 8, 0, nothing), 5, 0.1);
}

void test_many_images_and_one_for_all() {
  check_same(make_map(70, 1, 4, 4, noise(9, 1.0F)), 3, 0.0);
  Map map = make_map(1, 2, 8, 12, noise(10, 0.5F));
  map.shape[0] = 5;
  map.stride[0] = 0;
  check_same(map, 20, 0.0);
}

void test_errors() {
  DeviceBuffer<float> map(4), scores(2);
  DeviceBuffer<std::int64_t> cells(2);
  DeviceBuffer<unsigned char> workspace(4096);
  const TensorView integer = make_view(cells.data(), DType::kInt64, {1, 2}, kCuda);
  const auto decode = [&](const TensorView& heatmap, const TensorView& out, std::size_t bytes) {
    centermask::decode_centers_cuda(heatmap, {2, 0.0}, {workspace.data(), bytes}, out, integer, integer,
                                    make_view(cells.data(), DType::kInt64, {1}, kCuda), {});
  };
  const TensorView heatmap = make_view(map.data(), DType::kFloat32, {1, 1, 2, 2}, kCuda);
  const TensorView good = make_view(scores.data(), DType::kFloat32, {1, 2}, kCuda);
  CHECK_FAILS(decode(heatmap, make_view(scores.data(), DType::kFloat32, {1, 2}), 4096), centermask::ErrorKind::kValue,
              "decode_centers: scores must be on the device of heatmap (cuda:0), got cpu");
  CHECK_FAILS(decode(heatmap, good, 1), centermask::ErrorKind::kValue, "decode_centers: workspace must have");
  CHECK_FAILS(decode(make_view(map.data(), DType::kFloat64, {1, 1, 1, 2}, kCuda), good, 4096),
              centermask::ErrorKind::kType, "float32, float16 or bfloat16 on CUDA, got float64");
  CHECK_FAILS(decode(heatmap, make_view(scores.data(), DType::kFloat16, {1, 2}, kCuda), 4096),
              centermask::ErrorKind::kType, "scores must be float32, got float16");
  std::int64_t cpu_cells[2] = {};
  const TensorView cpu_integer = make_view(cpu_cells, DType::kInt64, {1, 2});
  CHECK_FAILS(centermask::decode_centers_cuda(make_view(cpu_cells, DType::kFloat32, {1, 1, 2, 2}), {2, 0.0}, {},
                                              make_view(cpu_cells, DType::kFloat32, {1, 2}), cpu_integer, cpu_integer,
                                              make_view(cpu_cells, DType::kInt64, {1}), {}),
              centermask::ErrorKind::kValue, "heatmap must be on the stream's device (cuda:0), got cpu");
  TensorView huge = heatmap;
  huge.shape[1] = std::int64_t{1} << 20;
  huge.shape[2] = huge.shape[3] = 1 << 10;
  CHECK_FAILS(centermask::decode_centers_workspace_cuda(huge, {}), centermask::ErrorKind::kUnsupported,
              "less than 2^32 cells per image");
}

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
  test_noise_of_any_size_layout_and_dtype();
  test_top_k();
  test_thresholds();
  test_constant_maps();
  test_special_values_mixed();
  test_crowded_peaks();
  test_plateaus();
  test_empty();
  test_many_images_and_one_for_all();
  test_errors();
  return check_result();
}
