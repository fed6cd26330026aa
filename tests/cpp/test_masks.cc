#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "centermask/masks.h"
#include "centermask/rle.h"
#include "check.h"

using namespace centermask;

namespace {

struct Case {
  std::vector<float> features, mask_params, boxes;
  std::vector<std::int64_t> labels;
  std::int64_t channels, rows, columns, instances;
  AssembleMasksParams params;

  AssembleMasksInputs inputs() {
    const std::int64_t columns_of_params = params.head == MaskHead::kDynamic ? 169 : 1024;
    return {make_view(features.data(), DType::kFloat32, {channels, rows, columns}),
            make_view(mask_params.data(), DType::kFloat32, {instances, columns_of_params}),
            make_view(boxes.data(), DType::kFloat32, {instances, 4}),
            make_view(labels.data(), DType::kInt64, {instances})};
  }
};

Case random_case(MaskHead head, std::int64_t instances) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  Case c;
  c.channels = head == MaskHead::kDynamic ? 8 : 3;
  c.rows = 9;
  c.columns = 13;
  c.instances = instances;
  c.params.head = head;
  c.params.image_height = 70;
  c.params.image_width = 97;
  c.params.image_to_input[0] = 0.5;
  c.params.image_to_input[2] = 1.25;
  c.params.image_to_input[4] = 0.5;
  c.params.threshold = default_mask_threshold(head);
  c.features.resize(static_cast<std::size_t>(c.channels * c.rows * c.columns));
  c.mask_params.resize(static_cast<std::size_t>(instances * (head == MaskHead::kDynamic ? 169 : 1024)));
  for (float& value : c.features) value = 2 * normal(random);
  for (float& value : c.mask_params) value = normal(random);
  std::uniform_real_distribution<float> place(-8, 56);
  for (std::int64_t i = 0; i < instances; ++i) {
    const float x = place(random), y = place(random);
    c.boxes.insert(c.boxes.end(), {x, y, x + place(random), y + place(random)});
    c.labels.push_back(static_cast<std::int64_t>(random() % 3));
  }
  return c;
}

struct Result {
  std::vector<std::uint32_t> runs;
  std::vector<std::int64_t> offsets;
};

Result assemble(Case& c, const ParallelFor& parallel = {}) {
  Result result;
  result.offsets.resize(static_cast<std::size_t>(c.instances) + 1);
  const TensorView offsets = make_view(result.offsets.data(), DType::kInt64, {c.instances + 1});
  const std::int64_t needed =
      assemble_masks_cpu(c.params, c.inputs(), make_view(nullptr, DType::kUInt32, {0}), offsets, parallel);
  CHECK(needed == result.offsets.back());
  result.runs.resize(static_cast<std::size_t>(needed));
  CHECK(assemble_masks_cpu(c.params, c.inputs(), make_view(result.runs.data(), DType::kUInt32, {needed}), offsets,
                           parallel) == needed);
  return result;
}

TensorView mask_of(Result& result, std::int64_t i) {
  const std::int64_t begin = result.offsets[static_cast<std::size_t>(i)];
  return make_view(result.runs.data() + begin, DType::kUInt32,
                   {result.offsets[static_cast<std::size_t>(i) + 1] - begin});
}

// Runs are canonical, bitmaps hold the same masks, and threads change nothing.
void test_outputs_agree(MaskHead head) {
  Case c = random_case(head, 40);
  Result result = assemble(c);
  for (int threads : {2, 8}) {
    ThreadPool pool(threads);
    const Result other = assemble(c, pool.parallel_for());
    CHECK(other.runs == result.runs);
    CHECK(other.offsets == result.offsets);
  }
  std::vector<std::int64_t> windows(static_cast<std::size_t>(4 * c.instances));
  mask_windows(c.params, c.inputs().boxes, make_view(windows.data(), DType::kInt64, {c.instances, 4}));
  std::int64_t area = 0;
  for (std::size_t i = 0; i < windows.size(); i += 4) area += windows[i + 2] * windows[i + 3];
  std::vector<std::uint8_t> crops(static_cast<std::size_t>(area), 7);
  assemble_bitmaps_cpu(c.params, c.inputs(), make_view(crops.data(), DType::kUInt8, {area}));

  const std::uint8_t* crop = crops.data();
  std::int64_t inside = 0;
  for (std::int64_t i = 0; i < c.instances; ++i) {
    std::vector<std::uint8_t> bitmap(static_cast<std::size_t>(c.params.image_height * c.params.image_width), 0);
    const std::int64_t* window = &windows[static_cast<std::size_t>(4 * i)];
    for (std::int64_t y = 0; y < window[3]; ++y) {
      for (std::int64_t x = 0; x < window[2]; ++x) {
        bitmap[static_cast<std::size_t>((window[1] + y) * c.params.image_width + window[0] + x)] = *crop;
        inside += *crop++;
      }
    }
    std::vector<std::uint32_t> runs(bitmap.size() + 1);
    const TensorView pixels = make_view(bitmap.data(), DType::kUInt8, {c.params.image_height, c.params.image_width});
    runs.resize(static_cast<std::size_t>(
        rle_encode(pixels, make_view(runs.data(), DType::kUInt32, {static_cast<std::int64_t>(runs.size())}))));
    const TensorView mask = mask_of(result, i);
    CHECK((std::vector<std::uint32_t>(mask.ptr<std::uint32_t>(), mask.ptr<std::uint32_t>() + mask.shape[0]) == runs));
  }
  CHECK(inside > 300);
}

void test_broken_numbers_stay_in_bounds(MaskHead head) {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity(), 3e38f, -3e38f};
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    Case c = random_case(head, 6);
    for (std::vector<float>* values : {&c.features, &c.mask_params, &c.boxes}) {
      for (int i = 0; i < 3; ++i) (*values)[random() % values->size()] = bad[random() % 5];
    }
    Result result = assemble(c);
    for (std::int64_t i = 0; i < c.instances; ++i) {
      rle_check(mask_of(result, i), c.params.image_height, c.params.image_width);
    }
  }
}

void test_constant_mask_fills_its_box() {
  Case c = random_case(MaskHead::kDynamic, 1);
  std::fill(c.mask_params.begin(), c.mask_params.end(), 0.0f);
  c.mask_params.back() = 1.0f;  // the last bias alone: v = 1 everywhere
  c.boxes = {11.25f, 10, 21.25f, 20};
  c.params.box_margin = 0;
  Result result = assemble(c);
  double box[4];
  rle_bbox(mask_of(result, 0), 70, 97, make_view(box, DType::kFloat64, {4}));
  CHECK(box[0] == 20 && box[1] == 20 && box[2] == 20 && box[3] == 20);  // image = 2 * (input - shift)
  CHECK(rle_area(mask_of(result, 0)) == 400);
  c.params.box_margin = 0.1;
  result = assemble(c);
  CHECK(rle_area(mask_of(result, 0)) == 24 * 24);
}

// Under UndefinedBehaviorSanitizer: memory without elements may be null.
void test_boxes_beyond_the_image() {
  Case c = random_case(MaskHead::kDynamic, 2);
  c.boxes = {-90, -90, -80, -80, 1e6f, 1, 2e6f, 2};
  assemble_bitmaps_cpu(c.params, c.inputs(), make_view(nullptr, DType::kUInt8, {0}));
  Result result = assemble(c);
  CHECK(rle_area(mask_of(result, 0)) == 0 && rle_area(mask_of(result, 1)) == 0);
}

void test_errors() {
  Case c = random_case(MaskHead::kShape, 2);
  c.labels[1] = 3;
  CHECK_FAILS(assemble(c), ErrorKind::kValue, "labels must be below M=3, got 3 at 1");
  c.labels[1] = -1;
  Result result = assemble(c);
  CHECK(rle_area(mask_of(result, 1)) == 0);
  AssembleMasksInputs inputs = c.inputs();
  inputs.labels = {};
  std::int64_t offsets[3];
  const TensorView offsets_view = make_view(offsets, DType::kInt64, {3});
  const TensorView runs = make_view(nullptr, DType::kUInt32, {0});
  CHECK_FAILS(assemble_masks_cpu(c.params, inputs, runs, offsets_view), ErrorKind::kType, "labels is missing");
  CHECK_FAILS(assemble_masks_cpu(c.params, c.inputs(), runs, make_view(offsets, DType::kInt64, {2})), ErrorKind::kValue,
              "offsets must be contiguous with 3 elements");
  c.params.head = MaskHead::kDynamic;
  CHECK_FAILS(assemble(c), ErrorKind::kValue, "mask_features must be [M=8, h>=1, w>=1], got [3, 9, 13]");
  c.params.image_to_input[1] = 0.1;
  CHECK_FAILS(assemble(c), ErrorKind::kValue, "image_to_input");
}

}  // namespace

int main() {
  for (MaskHead head : {MaskHead::kDynamic, MaskHead::kShape}) {
    test_outputs_agree(head);
    test_broken_numbers_stay_in_bounds(head);
  }
  test_constant_mask_fills_its_box();
  test_boxes_beyond_the_image();
  test_errors();
  return check_result();
}
