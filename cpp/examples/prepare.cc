#include "prepare.h"

#include <centermask/preprocess.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace example {

namespace {

struct Geometry {
  double scale = 1, shift_x = 0, shift_y = 0;
  std::int64_t width = 0, height = 0;  // of the input
};

Geometry place(std::int64_t width, std::int64_t height, std::int64_t size, const std::string& policy) {
  Geometry at;
  const auto longest = static_cast<double>(std::max(width, height)), wanted = static_cast<double>(size);
  if (policy == "fit") {
    at.scale = wanted / longest;
    auto axis = [&](std::int64_t side, std::int64_t& padded, double& shift) {
      const double scaled = static_cast<double>(side) * at.scale;
      const auto content = std::max(std::int64_t{1}, static_cast<std::int64_t>(std::nearbyint(scaled)));
      padded = (content + 31) / 32 * 32;
      shift = static_cast<double>((padded - content) / 2) + (static_cast<double>(content) - scaled) / 2;
    };
    axis(width, at.width, at.shift_x);
    axis(height, at.height, at.shift_y);
  } else if (policy == "fixed" || policy == "fixed_index") {
    at.scale = wanted / longest;
    at.width = at.height = size;
    const double half = policy == "fixed" ? 0.5 : 0;
    at.shift_x = wanted / 2 + half - at.scale * (static_cast<double>(width) / 2 + half);
    at.shift_y = wanted / 2 + half - at.scale * (static_cast<double>(height) / 2 + half);
  } else if (policy == "keep") {
    at.width = (width | 31) + 1;
    at.height = (height | 31) + 1;
    at.shift_x = static_cast<double>(at.width / 2 - width / 2);
    at.shift_y = static_cast<double>(at.height / 2 - height / 2);
  } else {
    throw std::runtime_error("unknown size policy " + policy);
  }
  return at;
}

// For each of `to` equal parts of an axis of `from` pixels: its first pixel, and the share of each pixel that it
// covers.
struct Part {
  std::int64_t first = 0;
  std::vector<double> shares;
};

std::vector<Part> parts(std::int64_t from, std::int64_t to) {
  std::vector<Part> all(static_cast<std::size_t>(to));
  const double step = static_cast<double>(from) / static_cast<double>(to);
  for (std::int64_t i = 0; i < to; ++i) {
    const double begin = static_cast<double>(i) * step,
                 end = std::min(static_cast<double>(i + 1) * step, static_cast<double>(from));
    Part& part = all[static_cast<std::size_t>(i)];
    part.first = static_cast<std::int64_t>(begin);
    for (std::int64_t x = part.first; static_cast<double>(x) < end - 1e-9; ++x) {
      const double share = std::min(end, static_cast<double>(x + 1)) - std::max(begin, static_cast<double>(x));
      part.shares.push_back(share / step);
    }
  }
  return all;
}

// Each pixel of the result is the mean of the area that it covers.
Image average_down(const Image& image, std::int64_t width, std::int64_t height,
                   const centermask::ParallelFor& parallel) {
  Image small;
  small.width = width;
  small.height = height;
  small.pixels.resize(static_cast<std::size_t>(3 * width * height));
  const auto columns = parts(image.width, width), rows = parts(image.height, height);
  parallel(height, [&](std::int64_t y) {
    const Part& row = rows[static_cast<std::size_t>(y)];
    for (std::int64_t x = 0; x < width; ++x) {
      const Part& column = columns[static_cast<std::size_t>(x)];
      double sum[3] = {0, 0, 0};
      for (std::size_t i = 0; i < row.shares.size(); ++i) {
        const std::int64_t line = (row.first + static_cast<std::int64_t>(i)) * image.width + column.first;
        const std::uint8_t* pixel = &image.pixels[static_cast<std::size_t>(3 * line)];
        for (const double share : column.shares) {
          for (int c = 0; c < 3; ++c) sum[c] += row.shares[i] * share * *pixel++;
        }
      }
      for (int c = 0; c < 3; ++c) {
        small.pixels[static_cast<std::size_t>(3 * (y * width + x) + c)] =
            static_cast<std::uint8_t>(std::nearbyint(sum[c]));
      }
    }
  });
  return small;
}

}  // namespace

NetworkInput prepare(const Image& image, const ModelInfo& info, const centermask::ParallelFor& parallel,
                     std::vector<float>& storage) {
  const Geometry at = place(image.width, image.height, info.size, info.size_policy);
  // `fixed_index` takes the samples of `fixed`, and only reads coordinates otherwise.
  const Geometry samples =
      info.size_policy == "fixed_index" ? place(image.width, image.height, info.size, "fixed") : at;
  double scale_x = samples.scale, scale_y = samples.scale;
  const Image* source = &image;
  Image small;
  if (info.size_policy == "fit" && at.scale <= 0.5) {  // bilinear samples would miss most pixels
    const auto factor = static_cast<std::int64_t>(1 / at.scale + 1e-6);
    small = average_down(image, (image.width + factor - 1) / factor, (image.height + factor - 1) / factor, parallel);
    scale_x *= static_cast<double>(image.width) / static_cast<double>(small.width);
    scale_y *= static_cast<double>(image.height) / static_cast<double>(small.height);
    source = &small;
  }
  centermask::PreprocessParams params;
  const double matrix[6] = {scale_x, 0, samples.shift_x, 0, scale_y, samples.shift_y};
  std::copy(matrix, matrix + 6, params.image_to_input);
  std::copy(info.mean.begin(), info.mean.end(), params.mean);
  std::copy(info.std.begin(), info.std.end(), params.std);
  params.swap_channels = info.color == "bgr";
  storage.resize(static_cast<std::size_t>(3 * at.height * at.width));
  auto* pixels = const_cast<std::uint8_t*>(source->pixels.data());
  centermask::preprocess_cpu(
      centermask::make_view(pixels, centermask::DType::kUInt8, {source->height, source->width, 3}), params,
      centermask::make_view(storage.data(), centermask::DType::kFloat32, {3, at.height, at.width}), parallel);

  NetworkInput input;
  input.data = storage.data();
  input.height = at.height;
  input.width = at.width;
  const double image_to_input[6] = {at.scale, 0, at.shift_x, 0, at.scale, at.shift_y};
  std::copy(image_to_input, image_to_input + 6, input.image_to_input);
  input.image_height = image.height;
  input.image_width = image.width;
  return input;
}

}  // namespace example
