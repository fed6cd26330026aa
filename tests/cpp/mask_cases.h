// Cases of mask assembly, and the value of a pixel by plain loops in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "centermask/masks.h"
#include "centermask/rle.h"
#include "device_memory.h"

namespace mask_cases {

using namespace centermask;

inline const Device kCuda = {DeviceType::kCuda, 0};
inline const CudaStream kStream;

struct Case {
  std::vector<float> features, mask_params, boxes;
  std::vector<std::int64_t> labels;
  std::int64_t channels, rows, columns, instances;
  AssembleMasksParams params;

  std::int64_t columns_of_params() const { return params.head == MaskHead::kDynamic ? 169 : 1024; }

  AssembleMasksInputs inputs() {
    return {make_view(features.data(), DType::kFloat32, {channels, rows, columns}),
            make_view(mask_params.data(), DType::kFloat32, {instances, columns_of_params()}),
            make_view(boxes.data(), DType::kFloat32, {instances, 4}),
            make_view(labels.data(), DType::kInt64, {instances})};
  }
};

// The same in the memory of the device.
struct DeviceCase {
  explicit DeviceCase(const Case& c)
      : features(c.features),
        mask_params(c.mask_params),
        boxes(c.boxes),
        labels(c.labels),
        params(c.params),
        inputs{make_view(features.data(), DType::kFloat32, {c.channels, c.rows, c.columns}, kCuda),
               make_view(mask_params.data(), DType::kFloat32, {c.instances, c.columns_of_params()}, kCuda),
               make_view(boxes.data(), DType::kFloat32, {c.instances, 4}, kCuda),
               make_view(labels.data(), DType::kInt64, {c.instances}, kCuda)} {}

  DeviceBuffer<float> features, mask_params, boxes;
  DeviceBuffer<std::int64_t> labels;
  AssembleMasksParams params;
  AssembleMasksInputs inputs;
};

struct Geometry {
  std::int64_t height, width;
  std::int64_t rows, columns;
  double scale_x, shift_x, scale_y, shift_y;
  std::int64_t stride = 4;
};

inline Case random_case(MaskHead head, std::int64_t instances, const Geometry& g, unsigned seed = 11) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Case c;
  c.channels = head == MaskHead::kDynamic ? 8 : 3;
  c.rows = g.rows;
  c.columns = g.columns;
  c.instances = instances;
  c.params.head = head;
  c.params.image_height = g.height;
  c.params.image_width = g.width;
  c.params.image_to_input[0] = g.scale_x;
  c.params.image_to_input[2] = g.shift_x;
  c.params.image_to_input[4] = g.scale_y;
  c.params.image_to_input[5] = g.shift_y;
  c.params.stride = g.stride;
  c.params.threshold = default_mask_threshold(head);
  c.features.resize(static_cast<std::size_t>(c.channels * c.rows * c.columns));
  c.mask_params.resize(static_cast<std::size_t>(instances * c.columns_of_params()));
  const bool dynamic = head == MaskHead::kDynamic;
  for (float& value : c.features) value = dynamic ? 1.5f * normal(random) : 1.5f * normal(random) + 1.5f;
  for (float& value : c.mask_params) value = dynamic ? 0.4f * normal(random) : 2.0f * normal(random) + 1.0f;
  const double across = g.scale_x * static_cast<double>(g.width), down = g.scale_y * static_cast<double>(g.height);
  std::uniform_real_distribution<double> place(-0.15, 1.15);
  for (std::int64_t i = 0; i < instances; ++i) {
    double x0 = place(random), x1 = place(random), y0 = place(random), y1 = place(random);
    if (x0 > x1 && i % 7 != 0) std::swap(x0, x1);
    if (y0 > y1 && i % 11 != 0) std::swap(y0, y1);
    c.boxes.insert(c.boxes.end(),
                   {static_cast<float>(g.shift_x + x0 * across), static_cast<float>(g.shift_y + y0 * down),
                    static_cast<float>(g.shift_x + x1 * across), static_cast<float>(g.shift_y + y1 * down)});
    c.labels.push_back(static_cast<std::int64_t>(random() % 4) - 1);
  }
  return c;
}

struct Result {
  std::vector<std::uint32_t> runs;
  std::vector<std::int64_t> offsets;

  TensorView mask(std::int64_t i) {
    const std::int64_t begin = offsets[static_cast<std::size_t>(i)];
    return make_view(runs.data() + begin, DType::kUInt32, {offsets[static_cast<std::size_t>(i) + 1] - begin});
  }

  std::vector<std::uint8_t> bitmap(std::int64_t i, const AssembleMasksParams& params) {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(params.image_height * params.image_width));
    rle_decode(mask(i), make_view(pixels.data(), DType::kUInt8, {params.image_height, params.image_width}));
    return pixels;
  }
};

inline Result on_cpu(Case& c) {
  Result result;
  result.offsets.resize(static_cast<std::size_t>(c.instances) + 1);
  const TensorView offsets = make_view(result.offsets.data(), DType::kInt64, {c.instances + 1});
  const std::int64_t needed =
      assemble_masks_cpu(c.params, c.inputs(), make_view(nullptr, DType::kUInt32, {0}), offsets);
  result.runs.resize(static_cast<std::size_t>(needed));
  assemble_masks_cpu(c.params, c.inputs(), make_view(result.runs.data(), DType::kUInt32, {needed}), offsets);
  return result;
}

// ---- v in double, by plain loops ----

inline double between(double low, double high, double fraction) { return low * (1 - fraction) + high * fraction; }

inline double cell_value(const Case& c, std::int64_t instance, std::int64_t i, std::int64_t j) {
  const float* box = &c.boxes[static_cast<std::size_t>(4 * instance)];
  const float* params = &c.mask_params[static_cast<std::size_t>(c.columns_of_params() * instance)];
  const double x0 = box[0], y0 = box[1], x1 = box[2], y1 = box[3], stride = static_cast<double>(c.params.stride);
  const double x = stride * (static_cast<double>(j) + 0.5), y = stride * (static_cast<double>(i) + 0.5);
  const auto feature = [&](std::int64_t channel) {
    return static_cast<double>(c.features[static_cast<std::size_t>((channel * c.rows + i) * c.columns + j)]);
  };
  if (c.params.head == MaskHead::kDynamic) {
    const double size = std::max({x1 - x0, y1 - y0, stride});
    double in[10] = {2 * (x - (x0 + x1) / 2) / size, 2 * (y - (y0 + y1) / 2) / size}, first[8], second[8];
    for (int k = 0; k < 8; ++k) in[k + 2] = feature(k);
    for (int o = 0; o < 8; ++o) {
      first[o] = params[152 + o];
      for (int k = 0; k < 10; ++k) first[o] += params[o * 10 + k] * in[k];
      first[o] = std::max(first[o], 0.0);
    }
    double logit = params[168];
    for (int o = 0; o < 8; ++o) {
      second[o] = params[160 + o];
      for (int k = 0; k < 8; ++k) second[o] += params[80 + o * 8 + k] * first[k];
      logit += params[144 + o] * std::max(second[o], 0.0);
    }
    return logit;
  }
  const double u = std::min(std::max((x - x0) / (x1 - x0) * 32 - 0.5, 0.0), 31.0);
  const double v = std::min(std::max((y - y0) / (y1 - y0) * 32 - 0.5, 0.0), 31.0);
  const int left = static_cast<int>(u), upper = static_cast<int>(v);
  const int right = std::min(left + 1, 31), lower = std::min(upper + 1, 31);
  const double shape = between(between(params[upper * 32 + left], params[upper * 32 + right], u - left),
                               between(params[lower * 32 + left], params[lower * 32 + right], u - left), v - upper);
  const std::int64_t channel = c.channels > 1 ? c.labels[static_cast<std::size_t>(instance)] : 0;
  return 1 / (1 + std::exp(-shape)) / (1 + std::exp(-feature(channel)));
}

inline double pixel_value(const Case& c, std::int64_t instance, std::int64_t py, std::int64_t px) {
  const double* m = c.params.image_to_input;
  const double stride = static_cast<double>(c.params.stride);
  const auto place = [&](double scale, double shift, std::int64_t pixel, std::int64_t cells) {
    const double at = (scale * (static_cast<double>(pixel) + 0.5) + shift) / stride - 0.5;
    return std::min(std::max(at, 0.0), static_cast<double>(cells - 1));
  };
  const double u = place(m[0], m[2], px, c.columns), v = place(m[4], m[5], py, c.rows);
  const auto j = static_cast<std::int64_t>(u), i = static_cast<std::int64_t>(v);
  const std::int64_t right = std::min(j + 1, c.columns - 1), lower = std::min(i + 1, c.rows - 1);
  const double fraction = u - static_cast<double>(j);
  return between(between(cell_value(c, instance, i, j), cell_value(c, instance, i, right), fraction),
                 between(cell_value(c, instance, lower, j), cell_value(c, instance, lower, right), fraction),
                 v - static_cast<double>(i));
}

}  // namespace mask_cases
