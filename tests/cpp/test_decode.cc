// decode_centers from C++: the order, the threads, the borders of the allocation (run it under ASan).
#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "centermask/decode.h"
#include "check.h"

namespace {

using centermask::DType;
using centermask::make_view;
using centermask::ParallelFor;
using centermask::TensorView;

struct Result {
  std::vector<float> scores;
  std::vector<std::int64_t> labels, index, count;

  bool operator==(const Result& other) const {
    return scores == other.scores && labels == other.labels && index == other.index && count == other.count;
  }
};

Result decode(const TensorView& heatmap, std::int64_t k, double threshold, const ParallelFor& parallel = {}) {
  const std::int64_t n = heatmap.shape[0];
  const auto size = static_cast<std::size_t>(n * k);
  Result result{std::vector<float>(size, 9), std::vector<std::int64_t>(size, 9), std::vector<std::int64_t>(size, 9),
                std::vector<std::int64_t>(static_cast<std::size_t>(n), 9)};
  centermask::DecodeParams params;
  params.top_k = k;
  params.score_threshold = threshold;
  centermask::decode_centers_cpu(heatmap, params, make_view(result.scores.data(), DType::kFloat32, {n, k}),
                                 make_view(result.labels.data(), DType::kInt64, {n, k}),
                                 make_view(result.index.data(), DType::kInt64, {n, k}),
                                 make_view(result.count.data(), DType::kInt64, {n}), parallel);
  return result;
}

void test_order_and_filling() {
  constexpr float low = -9;
  float map[2][3][4] = {{{2, low, low, 1}, {low, low, low, low}, {low, low, low, 2}},
                        {{low, low, low, 2}, {low, low, low, low}, {0, low, low, low}}};
  const Result result = decode(make_view(map, DType::kFloat32, {1, 2, 3, 4}), 7, 0.25);
  CHECK(result.count[0] == 5);
  CHECK((result.labels == std::vector<std::int64_t>{0, 0, 1, 0, 1, -1, -1}));
  CHECK((result.index == std::vector<std::int64_t>{0, 11, 3, 3, 8, 0, 0}));
  CHECK_NEAR(result.scores[0], 0.88079707797788, 1e-7);
  CHECK_NEAR(result.scores[4], 0.5, 0);
  CHECK(result.scores[5] == 0 && result.scores[6] == 0);
}

void test_threads_agree() {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> map(3 * 4 * 90 * 131);
  for (float& value : map) value = std::floor(normal(random) * 4) / 4;  // many ties
  const TensorView heatmap = make_view(map.data(), DType::kFloat32, {3, 4, 90, 131});
  for (std::int64_t k : {std::int64_t{1}, std::int64_t{100}, std::int64_t{50000}}) {
    const Result one = decode(heatmap, k, 0.2);
    for (int threads : {2, 3, 8}) {
      centermask::ThreadPool pool(threads);
      CHECK(decode(heatmap, k, 0.2, pool.parallel_for()) == one);
    }
  }
}

void test_double() {
  double map[1] = {3};
  double score = 0;
  std::int64_t label = 9, index = 9, count = 9;
  centermask::DecodeParams params;
  params.top_k = 1;
  centermask::decode_centers_cpu(make_view(map, DType::kFloat64, {1, 1, 1, 1}), params,
                                 make_view(&score, DType::kFloat64, {1, 1}), make_view(&label, DType::kInt64, {1, 1}),
                                 make_view(&index, DType::kInt64, {1, 1}), make_view(&count, DType::kInt64, {1}));
  CHECK_NEAR(score, 0.95257412682243321912, 3e-16);  // three roundings
  CHECK(label == 0 && index == 0 && count == 1);
}

void test_errors() {
  float map[4] = {};
  const TensorView heatmap = make_view(map, DType::kFloat32, {1, 1, 2, 2});
  CHECK_FAILS(decode(heatmap, 0, 0), centermask::ErrorKind::kValue, "decode_centers: top_k must be >= 1, got 0");
  CHECK_FAILS(decode(heatmap, 1, -0.5), centermask::ErrorKind::kValue, "score_threshold must be in [0, 1], got -0.5");
  CHECK_FAILS(decode(make_view(map, DType::kFloat64, {1, 1, 1, 2}), 1, 0), centermask::ErrorKind::kType,
              "scores must be float64, got float32");
  const centermask::Device cuda{centermask::DeviceType::kCuda, 0};
  std::int64_t cell = 0;
  const TensorView integer = make_view(&cell, DType::kInt64, {1, 1}, cuda);
  CHECK_FAILS(centermask::decode_centers_cpu(make_view(map, DType::kFloat32, {1, 1, 2, 2}, cuda), {1, 0.0},
                                             make_view(map, DType::kFloat32, {1, 1}, cuda), integer, integer,
                                             make_view(&cell, DType::kInt64, {1}, cuda)),
              centermask::ErrorKind::kUnsupported, "decode_centers: heatmap must be on the CPU");
}

}  // namespace

int main() {
  test_order_and_filling();
  test_threads_agree();
  test_double();
  test_errors();
  return check_result();
}
