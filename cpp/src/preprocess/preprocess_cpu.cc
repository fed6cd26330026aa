// Each image row that is needed is interpolated along x once, into planes of floats; two such rows are then blended
// along y, normalised and written. The tables of taps and weights are made once, in double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "centermask/error.h"
#include "centermask/preprocess.h"

namespace centermask {

namespace {

// One output position along an axis: two neighbouring pixels (clamped into the image) and their weights, which are 0
// for a pixel beyond it.
struct Tap {
  std::int64_t first = 0;
  std::int64_t second = 0;
  float first_weight = 0;
  float second_weight = 0;

  bool empty() const { return first_weight == 0 && second_weight == 0; }
};

std::vector<Tap> axis_taps(std::int64_t outputs, std::int64_t pixels, double scale, double shift, std::int64_t stride) {
  std::vector<Tap> taps(static_cast<std::size_t>(outputs));
  for (std::int64_t i = 0; i < outputs; ++i) {
    // Pixel centres are at half-integers; from here on `position` counts from the centre of pixel 0.
    const double position = (static_cast<double>(i) + 0.5 - shift) / scale - 0.5;
    Tap& tap = taps[static_cast<std::size_t>(i)];
    if (!(position > -1 && position < static_cast<double>(pixels))) continue;  // also keeps the cast below defined
    const double floor = std::floor(position);
    const auto low = static_cast<std::int64_t>(floor);
    tap.first = std::max<std::int64_t>(low, 0) * stride;
    tap.second = std::min(low + 1, pixels - 1) * stride;
    if (low >= 0) tap.first_weight = static_cast<float>(1 - (position - floor));
    if (low + 1 < pixels) tap.second_weight = static_cast<float>(position - floor);
  }
  return taps;
}

void interpolate_row(const std::uint8_t* row, std::int64_t channel_stride, const Tap* taps, std::int64_t width,
                     float* planes) {
  const std::uint8_t* green = row + channel_stride;
  const std::uint8_t* last = green + channel_stride;
  float* plane0 = planes;
  float* plane1 = planes + width;
  float* plane2 = plane1 + width;
  for (std::int64_t x = 0; x < width; ++x) {
    const Tap tap = taps[x];
    plane0[x] = tap.first_weight * row[tap.first] + tap.second_weight * row[tap.second];
    plane1[x] = tap.first_weight * green[tap.first] + tap.second_weight * green[tap.second];
    plane2[x] = tap.first_weight * last[tap.first] + tap.second_weight * last[tap.second];
  }
}

// The two latest interpolated rows of a thread's range, so that upscaling does not compute a row twice.
class RowCache {
 public:
  RowCache(float* memory, std::int64_t row_size) : slots_{memory, memory + row_size} {}

  // Fills what is missing of the rows `a` and `b` by calling make(row, planes).
  template <class Make>
  void need(std::int64_t a, std::int64_t b, const float*& planes_a, const float*& planes_b, Make&& make) {
    const int slot_a = held_[1] == a ? 1 : held_[0] == a ? 0 : held_[0] == b ? 1 : 0;
    if (held_[slot_a] != a) make(a, slots_[slot_a]);
    held_[slot_a] = a;
    const int slot_b = a == b ? slot_a : 1 - slot_a;
    if (held_[slot_b] != b) make(b, slots_[slot_b]);
    held_[slot_b] = b;
    planes_a = slots_[slot_a];
    planes_b = slots_[slot_b];
  }

 private:
  float* slots_[2];
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();
  std::int64_t held_[2] = {kNone, kNone};  // row offsets
};

struct Job {
  const TensorView& image;
  const TensorView& out;
  std::vector<Tap> columns;
  std::vector<Tap> rows;
  float gain[3];
  float bias[3];
  bool swap_channels;

  void run(std::int64_t begin, std::int64_t end, float* memory) const {
    const std::int64_t width = out.shape[2];
    RowCache cache(memory, 3 * width);
    for (std::int64_t y = begin; y < end; ++y) {
      const Tap& tap = rows[static_cast<std::size_t>(y)];
      if (tap.empty()) {
        for (std::int64_t c = 0; c < 3; ++c) std::fill_n(output(c, y), width, bias[c]);
        continue;
      }
      const float* first = nullptr;
      const float* second = nullptr;
      cache.need(tap.first, tap.second, first, second, [&](std::int64_t offset, float* planes) {
        const std::uint8_t* row = image.ptr<std::uint8_t>() + offset;
        const std::int64_t step = image.stride[2];
        interpolate_row(swap_channels ? row + 2 * step : row, swap_channels ? -step : step, columns.data(), width,
                        planes);
      });
      for (std::int64_t c = 0; c < 3; ++c) {
        const float* a = first + c * width;
        const float* b = second + c * width;
        float* target = output(c, y);
        const float g = gain[c];
        const float shift = bias[c];
        for (std::int64_t x = 0; x < width; ++x) {
          target[x] = (tap.first_weight * a[x] + tap.second_weight * b[x]) * g + shift;
        }
      }
    }
  }

  float* output(std::int64_t c, std::int64_t y) const {
    return out.ptr<float>() + c * out.stride[0] + y * out.stride[1];
  }
};

}  // namespace

void preprocess_cpu(const TensorView& image, const PreprocessParams& params, const TensorView& out,
                    const ParallelFor& parallel) {
  check_preprocess(image, params, out);
  if (image.device.type != DeviceType::kCpu) fail(ErrorKind::kUnsupported, "preprocess: image must be on the CPU");
  const double* matrix = params.image_to_input;
  Job job{image,
          out,
          axis_taps(out.shape[2], image.shape[1], matrix[0], matrix[2], image.stride[1]),
          axis_taps(out.shape[1], image.shape[0], matrix[4], matrix[5], image.stride[0]),
          {},
          {},
          params.swap_channels};
  for (int c = 0; c < 3; ++c) {
    job.gain[c] = static_cast<float>(1 / params.std[c]);
    job.bias[c] = static_cast<float>((0 - params.mean[c]) / params.std[c]);
  }
  const std::int64_t height = out.shape[1];
  const std::int64_t scratch = 6 * out.shape[2];
  const std::int64_t chunks = std::min<std::int64_t>(height, parallel.threads > 1 ? 4 * parallel.threads : 1);
  std::vector<float> memory(static_cast<std::size_t>(chunks * scratch));
  parallel(chunks, [&](std::int64_t chunk) {
    job.run(height * chunk / chunks, height * (chunk + 1) / chunks, memory.data() + chunk * scratch);
  });
}

}  // namespace centermask
