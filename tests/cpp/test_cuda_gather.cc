// gather_patches_cuda copies what gather_patches_cpu copies, for every cell, layout and dtype.
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "centermask/gather.h"
#include "check.h"
#include "cuda_values.h"
#include "device_memory.h"

namespace {

using centermask::Device;
using centermask::DeviceType;
using centermask::DType;
using centermask::make_view;
using centermask::TensorView;

constexpr Device kCuda{DeviceType::kCuda, 0};

enum class Order { kRows, kChannelsLast, kPadded };

void set_strides(TensorView& view, Order order) {
  if (order == Order::kChannelsLast) {
    view.stride[1] = 1;
    view.stride[3] = view.shape[1];
    view.stride[2] = view.shape[1] * view.shape[3];
  } else if (order == Order::kPadded) {
    view.stride[2] += 1;
    view.stride[1] = view.stride[2] * view.shape[2] + 2;
    view.stride[0] = view.stride[1] * view.shape[1] + 1;
  }
}

template <class T>
void check_same(std::int64_t n, std::int64_t f, std::int64_t h, std::int64_t w, std::vector<std::int64_t> index,
                Order order) {
  const auto k = n == 0 ? 4 : static_cast<std::int64_t>(index.size()) / n;
  std::mt19937 random(1);
  std::vector<float> memory(static_cast<std::size_t>(n * (f * (h * (w + 1) + 2) + 1)));
  for (float& value : memory) value = static_cast<float>(random() % 2000) / 8 - 125;  // exact in float16
  const std::vector<T> values = cuda_values::encoded<T>(memory);
  std::vector<float> rounded = cuda_values::decoded(values);
  TensorView features = make_view(rounded.data(), DType::kFloat32, {n, f, h, w});
  set_strides(features, order);
  std::vector<float> expected(static_cast<std::size_t>(n * k * f * 9));
  // The indices lie transposed in memory.
  TensorView where = make_view(index.data(), DType::kInt64, {n, k});
  where.stride[0] = 1;
  where.stride[1] = n;
  centermask::gather_patches_cpu(features, where, make_view(expected.data(), DType::kFloat32, {n, k, f * 9}));

  const DeviceBuffer<T> device_features(values);
  const DeviceBuffer<std::int64_t> device_index(index);
  DeviceBuffer<T> patches(expected.size());
  features.data = device_features.data();
  features.dtype = cuda_values::dtype_of<T>();
  features.device = where.device = kCuda;
  where.data = device_index.data();
  centermask::gather_patches_cuda(features, where, make_view(patches.data(), features.dtype, {n, k, f * 9}, kCuda), {});
  CHECK(cuda_values::same_bits(cuda_values::decoded(patches.download()), expected));
}

void test_every_cell() {
  for (Order order : {Order::kRows, Order::kChannelsLast, Order::kPadded}) {
    std::vector<std::int64_t> index;
    for (std::int64_t cell = -2; cell < 4 * 5 + 2; ++cell) index.insert(index.end(), {cell, 19 - cell, cell});
    index[0] = std::numeric_limits<std::int64_t>::min();
    index[1] = std::numeric_limits<std::int64_t>::max();
    check_same<float>(3, 3, 4, 5, index, order);
    check_same<__half>(3, 3, 4, 5, index, order);
    check_same<__nv_bfloat16>(3, 3, 4, 5, index, order);
  }
}

void test_sizes() {
  check_same<float>(2, 70, 7, 9, {0, 62, 5, 31, 40, 8}, Order::kRows);  // more columns than a block has threads
  check_same<__half>(1, 257, 2, 2, {3, 0}, Order::kChannelsLast);
  check_same<float>(1, 2, 1, 1, {0}, Order::kRows);
  check_same<float>(0, 2, 3, 3, {}, Order::kRows);
  check_same<float>(2, 0, 3, 3, {1, 1}, Order::kRows);
  check_same<float>(2, 3, 0, 3, {0, 1}, Order::kRows);
  check_same<float>(2, 3, 3, 3, {}, Order::kRows);
}

void test_errors() {
  DeviceBuffer<float> features(4), patches(9);
  DeviceBuffer<std::int64_t> index(1);
  std::int64_t cpu_index[1] = {};
  const TensorView map = make_view(features.data(), DType::kFloat32, {1, 1, 2, 2}, kCuda);
  const TensorView out = make_view(patches.data(), DType::kFloat32, {1, 1, 9}, kCuda);
  CHECK_FAILS(centermask::gather_patches_cuda(map, make_view(cpu_index, DType::kInt64, {1, 1}), out, {}),
              centermask::ErrorKind::kValue,
              "gather_patches: index must be on the device of features (cuda:0), got cpu");
  CHECK_FAILS(centermask::gather_patches_cuda(make_view(features.data(), DType::kFloat64, {1, 1, 1, 2}, kCuda),
                                              make_view(index.data(), DType::kInt64, {1, 1}, kCuda), out, {}),
              centermask::ErrorKind::kType, "float32, float16 or bfloat16 on CUDA, got float64");
}

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
  test_every_cell();
  test_sizes();
  test_errors();
  return check_result();
}
