// assemble_masks and assemble_bitmaps on CUDA against the CPU's.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "centermask/masks.h"
#include "centermask/rle.h"
#include "check.h"
#include "device_memory.h"
#include "mask_cases.h"

using namespace centermask;
using namespace mask_cases;

namespace {

// First calls with too little room for the runs, then one with just enough.
Result on_cuda(const AssembleMasksParams& params, const AssembleMasksInputs& inputs) {
  const std::int64_t count = inputs.boxes.shape[0];
  DeviceBuffer<std::int64_t> offsets(static_cast<std::size_t>(count) + 1);
  const TensorView offsets_view = make_view(offsets.data(), DType::kInt64, {count + 1}, kCuda);
  DeviceBuffer<std::uint8_t> memory(assemble_masks_workspace_cuda(params, inputs));
  const Workspace workspace = {memory.data(), memory.bytes()};
  assemble_masks_cuda(params, inputs, workspace, make_view(nullptr, DType::kUInt32, {0}, kCuda), offsets_view, kStream);
  Result result;
  result.offsets = offsets.download();
  const std::int64_t needed = result.offsets.back();
  CHECK(needed >= count && needed < 1 << 26);
  if (needed < 0 || needed >= 1 << 26) return result;
  DeviceBuffer<std::uint32_t> runs(static_cast<std::size_t>(needed));
  const auto assemble = [&](std::int64_t capacity) {
    offsets.upload(std::vector<std::int64_t>(offsets.size(), -5));
    assemble_masks_cuda(params, inputs, workspace, make_view(runs.data(), DType::kUInt32, {capacity}, kCuda),
                        offsets_view, kStream);
    CHECK(offsets.download() == result.offsets);
    result.runs = runs.download();
  };
  if (needed > 1) {
    assemble(needed - 1);
    CHECK(std::count(result.runs.begin(), result.runs.end(), 0xffffffffu) == needed);  // as they were
  }
  assemble(needed);
  return result;
}

Result on_cuda(const Case& c) {
  const DeviceCase device(c);
  return on_cuda(c.params, device.inputs);
}

// The packed bitmaps hold the very masks of the runs.
void check_bitmaps(const Case& c, Result& result) {
  const DeviceCase device(c);
  const std::int64_t height = c.params.image_height, width = c.params.image_width, row_bytes = (width + 7) / 8;
  for (std::int64_t misaligned : {0, 1}) {
    DeviceBuffer<std::uint8_t> buffer(static_cast<std::size_t>(misaligned + c.instances * height * row_bytes));
    assemble_bitmaps_cuda(c.params, device.inputs,
                          make_view(buffer.data() + misaligned, DType::kUInt8, {c.instances, height, row_bytes}, kCuda),
                          kStream);
    const std::vector<std::uint8_t> bytes = buffer.download();
    CHECK(misaligned == 0 || bytes[0] == 0xff);
    for (std::int64_t i = 0; i < c.instances; ++i) {
      const std::vector<std::uint8_t> pixels = result.bitmap(i, c.params);
      std::int64_t wrong = 0;
      for (std::int64_t y = 0; y < height; ++y) {
        for (std::int64_t x = 0; x < 8 * row_bytes; ++x) {
          const auto at = static_cast<std::size_t>(misaligned + (i * height + y) * row_bytes + x / 8);
          const bool pixel = x < width && pixels[static_cast<std::size_t>(y * width + x)] != 0;
          wrong += (bytes[at] >> x % 8 & 1) != static_cast<int>(pixel);
        }
      }
      CHECK(wrong == 0);
    }
  }
}

// Compares with the CPU: the same pixels but where v is within 1e-5 of the threshold. Returns the number inside.
std::int64_t compare(Case& c, const char* name) {
  Result expected = on_cpu(c), actual = on_cuda(c);
  std::int64_t inside = 0, wrong = 0, ties = 0;
  for (std::int64_t i = 0; i < c.instances; ++i) {
    const TensorView mask = actual.mask(i);
    rle_check(mask, c.params.image_height, c.params.image_width);
    for (std::int64_t k = 1; k < mask.shape[0]; ++k) CHECK(mask.ptr<std::uint32_t>()[k] > 0);  // canonical
    const std::vector<std::uint8_t> a = actual.bitmap(i, c.params), e = expected.bitmap(i, c.params);
    for (std::size_t k = 0; k < a.size(); ++k) {
      inside += e[k];
      if (a[k] == e[k]) continue;
      const auto pixel = static_cast<std::int64_t>(k);
      const double v = pixel_value(c, i, pixel / c.params.image_width, pixel % c.params.image_width);
      ++(std::fabs(v - c.params.threshold) < 1e-5 ? ties : wrong);
    }
  }
  if (wrong > 0 || ties * 1000 > inside) {
    std::printf("%s, head %d: %lld pixels wrong and %lld tied, of %lld inside\n", name, static_cast<int>(c.params.head),
                static_cast<long long>(wrong), static_cast<long long>(ties), static_cast<long long>(inside));
  }
  CHECK(wrong == 0 && ties * 1000 <= inside);
  check_bitmaps(c, actual);
  return inside;
}

// ---- tests ----

void test_geometries(MaskHead head) {
  struct Named {
    const char* name;
    Geometry geometry;
    std::int64_t instances = 8;
  };
  const Named cases[] = {
      {"identity", {40, 56, 10, 14, 1, 0, 1, 0}, 12},
      {"upscale", {90, 300, 10, 34, 0.45, 0.7, 0.45, -3.2}},  // several strips of pixel columns
      {"both", {61, 33, 11, 9, 0.7, -2.5, 1.7, 5.25}},
      {"skips cells", {13, 150, 40, 420, 11, 0, 12, 3}},  // and more cells than a tile has columns
      {"one row", {1, 200, 10, 14, 0.25, 1, 20, 5}, 30},
      {"one column", {200, 1, 10, 14, 20, 5, 0.25, 1}, 30},
      {"one pixel", {1, 1, 10, 14, 30, 0, 30, 0}, 20},
      {"one cell", {17, 19, 1, 1, 0.3, 0, 0.3, 0}},
      {"long tiles", {700, 9, 180, 4, 1, 0, 1, 0}},  // more rows of cells than a tile has
      {"image beyond the map", {60, 90, 6, 8, 1, -12, 1, -9}},
      {"one pixel of a cell", {30, 40, 6, 8, 8, 0, 8, 0, 8}},
      {"stride 3", {64, 64, 24, 24, 1.1, 0.3, 1.05, -0.2, 3}},
      {"words", {33, 256, 12, 66, 1, 0, 1, 0}},
      {"many", {12, 20, 4, 6, 1, 0, 1, 0}, 150},  // more than sum_runs takes in one round
  };
  for (const Named& named : cases) {
    Case c = random_case(head, named.instances, named.geometry);
    std::int64_t inside = compare(c, named.name);
    if (inside == 0) std::printf("%s: nothing inside\n", named.name);
    CHECK(inside > 0);
    if (named.instances > 100) continue;
    for (double margin : {0.0, 1.5}) {
      c.params.box_margin = margin;
      compare(c, named.name);
    }
    c.params.threshold = head == MaskHead::kDynamic ? -0.7 : 0.3;
    compare(c, named.name);
  }
}

// Windows of the image's full height: runs go on from one pixel column to the next.
void test_whole_image(MaskHead head) {
  for (const Geometry& g : {Geometry{30, 300, 8, 76, 1, 0, 1, 0}, Geometry{1, 400, 2, 101, 1, 0, 1, 0},
                            Geometry{3, 260, 40, 520, 8, 0, 40, 0}, Geometry{600, 5, 151, 3, 1, 0, 1, 0}}) {
    for (unsigned seed = 0; seed < 3; ++seed) {
      Case c = random_case(head, 4, g, seed);
      for (std::size_t i = 0; i < c.boxes.size(); i += 4) {
        const float left = i == 4 ? 17.0f : -9.0f;
        c.boxes[i] = left, c.boxes[i + 1] = -5.0f, c.boxes[i + 2] = 5000.0f, c.boxes[i + 3] = 4000.0f;
      }
      // Large parts inside: changes at the columns' ends are rare and come and go.
      if (head == MaskHead::kDynamic) {
        for (std::int64_t i = 0; i < c.instances; ++i) c.mask_params[static_cast<std::size_t>(169 * i + 168)] += 1.0f;
      }
      c.labels.assign(4, 1);
      CHECK(compare(c, "whole image") > 100);
    }
  }
  Case c = random_case(head, 1, {30, 300, 8, 76, 1, 0, 1, 0});
  c.labels = {0};
  c.boxes = {-900, -900, 900, 900};
  std::fill(c.mask_params.begin(), c.mask_params.end(), 0.0f);
  c.params.threshold = -1;
  Result result = on_cuda(c);
  CHECK((result.runs == std::vector<std::uint32_t>{0, 9000}));
  c.params.box_margin = 0;
  c.boxes = {130, -900, 290, 900};
  result = on_cuda(c);
  CHECK((result.runs == std::vector<std::uint32_t>{130 * 30, 160 * 30, 10 * 30}));
  c.boxes = {130, 5, 132, 900};  // to the image's lower edge, but not from its upper one
  result = on_cuda(c);
  CHECK((result.runs == std::vector<std::uint32_t>{130 * 30 + 5, 25, 5, 25, 168 * 30}));
  c.boxes = {298, 5, 300, 900};  // to the last pixel
  result = on_cuda(c);
  CHECK((result.runs == std::vector<std::uint32_t>{298 * 30 + 5, 25, 5, 25}));
}

void test_boxes_of_every_kind(MaskHead head) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  Case c = random_case(head, 18, {31, 37, 8, 9, 1, 0, 1, 0});
  c.boxes = {4,  4,   20,   24,   -500, -300, 700,   900,   -3e38f, -3e38f, 3e38f, 3e38f, 100, 4,  120, 20, -20, -20,
             -8, -8,  -20,  4,    5,    9,    8,     8,     8,      20,     8,     8,     20,  8,  20,  20, 8,   8,
             8,  20,  20,   8,    9,    9,    9.01f, 9.01f, 9.3f,   9.3f,   9.7f,  9.7f,  nan, 4,  20,  24, 4,   4,
             20, nan, -inf, -inf, inf,  inf,  4,     4,     inf,    24,     4,     4,     20,  24, 4,   4,  20,  24};
  c.labels.assign(18, 0);
  compare(c, "boxes");
  Result result = on_cuda(c);
  for (std::int64_t i : {3, 4, 6, 7, 8, 9, 12, 13, 14, 15}) {
    CHECK(result.mask(i).shape[0] == 1 && result.mask(i).ptr<std::uint32_t>()[0] == 31 * 37);
  }
  CHECK(rle_area(result.mask(0)) > 0);
  if (head != MaskHead::kShape) return;
  c.labels[0] = -1;
  c.labels[16] = 3;  // an error on the CPU; here nobody can look in time
  c.labels[17] = std::numeric_limits<std::int64_t>::max();
  result = on_cuda(c);
  for (std::int64_t i : {0, 16, 17}) CHECK(result.mask(i).shape[0] == 1);
  check_bitmaps(c, result);
}

void test_broken_numbers(MaskHead head) {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity(), 3e38f, -3e38f};
  std::mt19937 random(5);
  for (int round = 0; round < 15; ++round) {
    Case c = random_case(head, 6, {70, 97, 9, 13, 0.5, 1.25, 0.5, 0}, static_cast<unsigned>(round));
    for (std::vector<float>* values : {&c.features, &c.mask_params, &c.boxes}) {
      for (int i = 0; i < 3; ++i) (*values)[random() % values->size()] = bad[random() % 5];
    }
    Result result = on_cuda(c);
    for (std::int64_t i = 0; i < c.instances; ++i) rle_check(result.mask(i), 70, 97);
    check_bitmaps(c, result);
  }
  // A cell that is not finite loses its neighbourhood, and nothing else.
  for (const float value : bad) {
    if (std::isfinite(value)) continue;
    Case c = random_case(head, 3, {36, 40, 9, 10, 1, 0, 1, 0});
    c.labels.assign(3, 1);
    c.boxes = {2, 2, 34, 30, 0, 0, 40, 36, 2, 2, 34, 30};
    c.features[static_cast<std::size_t>((1 * c.rows + 3) * c.columns + 4)] = value;
    if (head == MaskHead::kShape && value > 0) continue;  // sigmoid(inf) is 1
    compare(c, "broken cell");
  }
}

// Rounded towards zero; too small numbers for float16 become 0.
std::uint16_t half_bits(float value, DType type) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (type == DType::kBFloat16) return static_cast<std::uint16_t>(bits >> 16);
  const std::uint32_t sign = bits >> 31 << 15, exponent = bits >> 23 & 255;
  if (exponent < 113) return static_cast<std::uint16_t>(sign);
  return static_cast<std::uint16_t>(sign | (exponent - 112) << 10 | (bits >> 13 & 1023));
}

float half_value(std::uint16_t half, DType type) {
  std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  if (type == DType::kFloat16) {
    const std::uint32_t exponent = half >> 10 & 31u;
    bits = (half >> 15 & 1u) << 31;
    if (exponent > 0) bits |= (exponent + 112) << 23 | (half & 1023u) << 13;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::vector<std::uint16_t> halved(std::vector<float>& values, DType type) {
  std::vector<std::uint16_t> halves;
  for (float& value : values) {
    halves.push_back(half_bits(value, type));
    value = half_value(halves.back(), type);
  }
  return halves;
}

// Half precision is read as it is: the masks are those of the same values in float32.
void test_half_precision(MaskHead head) {
  for (const DType type : {DType::kFloat16, DType::kBFloat16}) {
    Case c = random_case(head, 5, {70, 97, 9, 13, 0.5, 1.25, 0.5, 0});
    const DeviceBuffer<std::uint16_t> features(halved(c.features, type)), mask_params(halved(c.mask_params, type));
    DeviceCase device(c);
    const Result expected = on_cuda(c.params, device.inputs);
    device.inputs.mask_features.data = features.data();
    device.inputs.mask_features.dtype = type;
    CHECK(on_cuda(c.params, device.inputs).runs == expected.runs);
    device.inputs.mask_params.data = mask_params.data();
    device.inputs.mask_params.dtype = type;
    const Result both = on_cuda(c.params, device.inputs);
    CHECK(both.runs == expected.runs && both.offsets == expected.offsets && both.runs.size() > 50);
  }
}

void test_strides(MaskHead head) {
  Case c = random_case(head, 5, {40, 56, 10, 14, 1, 0, 1, 0});
  std::vector<float> features(c.features.size()), mask_params(2 * c.mask_params.size()), boxes(c.boxes.size());
  std::vector<std::int64_t> labels(3 * c.labels.size());
  for (std::int64_t m = 0; m < c.channels; ++m) {  // channels last
    for (std::int64_t k = 0; k < c.rows * c.columns; ++k) {
      features[static_cast<std::size_t>(k * c.channels + m)] =
          c.features[static_cast<std::size_t>(m * c.rows * c.columns + k)];
    }
  }
  for (std::size_t i = 0; i < c.mask_params.size(); ++i) mask_params[2 * i] = c.mask_params[i];
  for (std::size_t i = 0; i < 5; ++i) {
    for (std::size_t k = 0; k < 4; ++k) boxes[5 * k + 4 - i] = c.boxes[4 * i + k];
    labels[3 * i] = c.labels[i];
  }
  const DeviceBuffer<float> device_features(features), device_params(mask_params), device_boxes(boxes);
  const DeviceBuffer<std::int64_t> device_labels(labels);
  DeviceCase device(c);
  const Result expected = on_cuda(c.params, device.inputs);
  AssembleMasksInputs inputs = device.inputs;
  inputs.mask_features.data = device_features.data();
  inputs.mask_features.stride[0] = 1;
  inputs.mask_features.stride[1] = c.columns * c.channels;
  inputs.mask_features.stride[2] = c.channels;
  inputs.mask_params.data = device_params.data();
  inputs.mask_params.stride[0] *= 2;
  inputs.mask_params.stride[1] *= 2;
  inputs.boxes.data = device_boxes.data() + 4;
  inputs.boxes.stride[0] = -1;
  inputs.boxes.stride[1] = 5;
  inputs.labels.data = device_labels.data();
  inputs.labels.stride[0] = 3;
  const Result actual = on_cuda(c.params, inputs);
  CHECK(actual.runs == expected.runs && actual.offsets == expected.offsets && actual.runs.size() > 50);
}

void test_nothing_and_errors() {
  const Geometry geometry = {40, 56, 10, 14, 1, 0, 1, 0};
  Case c = random_case(MaskHead::kShape, 0, geometry);
  Result none = on_cuda(c);
  CHECK(none.offsets == std::vector<std::int64_t>{0} && none.runs.empty());
  check_bitmaps(c, none);

  c = random_case(MaskHead::kShape, 2, geometry);
  const DeviceCase device(c);
  const DeviceBuffer<std::int64_t> ends(3);
  const DeviceBuffer<std::uint8_t> memory(800);
  const TensorView offsets = make_view(ends.data(), DType::kInt64, {3}, kCuda);
  const TensorView runs = make_view(nullptr, DType::kUInt32, {0}, kCuda);
  const Workspace workspace = {memory.data(), memory.bytes()};
  const auto fails = [&](const AssembleMasksInputs& inputs, const TensorView& offsets_view, const Workspace& scratch,
                         ErrorKind kind, const char* message) {
    CHECK_FAILS(assemble_masks_cuda(c.params, inputs, scratch, runs, offsets_view, kStream), kind, message);
  };
  AssembleMasksInputs inputs = device.inputs;
  inputs.boxes.device = {};
  fails(inputs, offsets, workspace, ErrorKind::kValue, "boxes must be on cuda:0, where the call runs, got cpu");
  inputs = device.inputs;
  inputs.mask_params.device.index = 1;
  fails(inputs, offsets, workspace, ErrorKind::kValue,
        "mask_params must be on cuda:0, where the call runs, got cuda:1");
  inputs = device.inputs;
  inputs.labels.device = {};
  fails(inputs, offsets, workspace, ErrorKind::kValue, "labels must be on cuda:0, where the call runs, got cpu");
  inputs = device.inputs;
  inputs.mask_features.dtype = DType::kFloat64;
  fails(inputs, offsets, workspace, ErrorKind::kType,
        "mask_features must be float32, float16 or bfloat16, got float64");
  inputs = device.inputs;
  fails(inputs, make_view(ends.data(), DType::kInt64, {3}), workspace, ErrorKind::kValue, "offsets must be on cuda:0");
  fails(inputs, offsets, {memory.data(), 3}, ErrorKind::kValue, "assemble_masks: workspace must have 24 bytes, got 3");
  CHECK_FAILS(assemble_bitmaps_cuda(c.params, inputs, make_view(nullptr, DType::kUInt8, {2, 40, 8}, kCuda), kStream),
              ErrorKind::kValue, "bitmaps must be contiguous [I=2, 40, 7], got [2, 40, 8]");
  CHECK_FAILS(assemble_masks_cpu(c.params, inputs, runs, offsets), ErrorKind::kValue,
              "boxes must be on cpu, where the call runs, got cuda:0");
}

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
  for (MaskHead head : {MaskHead::kDynamic, MaskHead::kShape}) {
    test_geometries(head);
    test_whole_image(head);
    test_boxes_of_every_kind(head);
    test_broken_numbers(head);
    test_half_precision(head);
    test_strides(head);
  }
  test_nothing_and_errors();
  return check_result();
}
