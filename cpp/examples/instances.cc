#include "instances.h"

#include <centermask/masks.h>
#include <centermask/rle.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>

namespace example {

namespace {

using centermask::DType;
using centermask::make_view;
using centermask::TensorView;

template <class T>
TensorView view_of(const std::vector<T>& values, DType dtype, std::initializer_list<std::int64_t> shape) {
  return make_view(const_cast<T*>(values.data()), dtype, shape);  // the core writes to no input
}

// Whether two boxes of the input overlap by more than this share of their union.
bool overlaps(const float* a, const float* b, double most) {
  auto area = [](double x0, double y0, double x1, double y1) { return (x1 - x0) * (y1 - y0); };
  const double width =
      std::max(0.0, static_cast<double>(std::min(a[2], b[2])) - static_cast<double>(std::max(a[0], b[0])));
  const double height =
      std::max(0.0, static_cast<double>(std::min(a[3], b[3])) - static_cast<double>(std::max(a[1], b[1])));
  const double common = width * height;
  return common > most * (area(a[0], a[1], a[2], a[3]) + area(b[0], b[1], b[2], b[3]) - common);
}

// The masks of chosen rows, by the core.
void assemble(const NetworkOutput& output, const NetworkInput& input, const ModelInfo& info,
              const std::vector<std::int64_t>& rows, const centermask::ParallelFor& parallel,
              std::vector<Instance>& instances) {
  centermask::AssembleMasksParams params;
  params.head = info.mask_head == "shape" ? centermask::MaskHead::kShape : centermask::MaskHead::kDynamic;
  params.image_height = input.image_height;
  params.image_width = input.image_width;
  std::copy(input.image_to_input, input.image_to_input + 6, params.image_to_input);
  params.stride = info.stride;
  params.threshold = centermask::default_mask_threshold(params.head);
  params.box_margin = info.box_margin;

  const auto count = static_cast<std::int64_t>(rows.size());
  std::vector<float> mask_params, boxes;
  std::vector<std::int64_t> labels;
  for (const std::int64_t row : rows) {
    const auto first = output.mask_params.begin() + row * output.param_count;
    mask_params.insert(mask_params.end(), first, first + output.param_count);
    boxes.insert(boxes.end(), output.boxes.begin() + 4 * row, output.boxes.begin() + 4 * row + 4);
    labels.push_back(output.labels[static_cast<std::size_t>(row)]);
  }
  centermask::AssembleMasksInputs inputs;
  inputs.mask_features =
      view_of(output.mask_features, DType::kFloat32, {output.features[0], output.features[1], output.features[2]});
  inputs.mask_params = view_of(mask_params, DType::kFloat32, {count, output.param_count});
  inputs.boxes = view_of(boxes, DType::kFloat32, {count, 4});
  inputs.labels = view_of(labels, DType::kInt64, {count});

  std::vector<std::int64_t> offsets(rows.size() + 1);
  std::vector<std::uint32_t> runs(1 << 16);
  for (;;) {  // at most twice: the first call says how many there are
    const auto capacity = static_cast<std::int64_t>(runs.size());
    const std::int64_t needed =
        centermask::assemble_masks_cpu(params, inputs, view_of(runs, DType::kUInt32, {capacity}),
                                       view_of(offsets, DType::kInt64, {count + 1}), parallel);
    if (needed <= capacity) break;
    runs.resize(static_cast<std::size_t>(needed));
  }
  for (std::size_t i = 0; i < rows.size(); ++i)
    instances[i].runs.assign(runs.begin() + offsets[i], runs.begin() + offsets[i + 1]);
}

TensorView runs_of(const Instance& instance) {
  return view_of(instance.runs, DType::kUInt32, {static_cast<std::int64_t>(instance.runs.size())});
}

std::string rle_text(const Instance& instance) {
  std::vector<std::uint8_t> text(7 * instance.runs.size() + 1);  // 32 bits in groups of five
  const std::int64_t size = centermask::rle_to_string(
      runs_of(instance), view_of(text, DType::kUInt8, {static_cast<std::int64_t>(text.size())}));
  return {text.begin(), text.begin() + size};
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      json += escape;
    } else {
      json += c;
    }
  }
  return json + '"';
}

}  // namespace

std::vector<Instance> to_instances(const NetworkOutput& output, const NetworkInput& input, const ModelInfo& info,
                                   double score_threshold, const centermask::ParallelFor& parallel) {
  std::vector<Instance> instances;
  std::vector<std::int64_t> rows;
  const double* m = input.image_to_input;
  for (std::int64_t k = 0; k < output.count; ++k) {
    Instance found;
    found.score = output.scores[static_cast<std::size_t>(k)];
    found.label = output.labels[static_cast<std::size_t>(k)];
    if (found.score < static_cast<float>(score_threshold)) continue;
    const float* box = &output.boxes[static_cast<std::size_t>(4 * k)];
    for (int i = 0; i < 4; ++i) {
      const int axis = i % 2;
      const auto corner = static_cast<float>((static_cast<double>(box[i]) - m[3 * axis + 2]) / m[4 * axis]);
      found.box[i] = std::clamp(corner, 0.0F, static_cast<float>(axis == 0 ? input.image_width : input.image_height));
    }
    if (!(found.box[2] > found.box[0] && found.box[3] > found.box[1])) continue;
    const bool duplicate =
        info.max_overlap < 1 &&
        std::any_of(
            rows.begin(), rows.end(),
            [&](std::int64_t kept) {
              const bool same_class =
                  info.class_agnostic || output.labels[static_cast<std::size_t>(kept)] == found.label;
              return same_class && overlaps(&output.boxes[static_cast<std::size_t>(4 * kept)], box, info.max_overlap);
            });
    if (duplicate) continue;
    if (found.label < 0 || found.label >= static_cast<std::int64_t>(info.classes.size())) {
      throw std::runtime_error("the model gave label " + std::to_string(found.label) + ", and has " +
                               std::to_string(info.classes.size()) + " classes");
    }
    if (!output.rle_offsets.empty()) {
      const auto first = output.rle_counts.begin();
      found.runs.assign(first + output.rle_offsets[static_cast<std::size_t>(k)],
                        first + output.rle_offsets[static_cast<std::size_t>(k) + 1]);
    }
    instances.push_back(std::move(found));
    rows.push_back(k);
  }
  if (!output.mask_params.empty() && !rows.empty()) assemble(output, input, info, rows, parallel, instances);
  return instances;
}

void draw(Image& image, const std::vector<Instance>& instances) {
  static constexpr std::uint8_t kColors[][3] = {{230, 60, 50},  {60, 170, 80},  {60, 110, 230},
                                                {240, 190, 40}, {160, 80, 200}, {40, 190, 200}};
  std::vector<std::uint8_t> bitmap(image.pixels.size() / 3);
  for (std::size_t n = 0; n < instances.size(); ++n) {
    const Instance& instance = instances[n];
    const auto& color = kColors[n % std::size(kColors)];
    if (!instance.runs.empty()) {
      centermask::rle_decode(runs_of(instance), view_of(bitmap, DType::kUInt8, {image.height, image.width}));
      for (std::size_t i = 0; i < bitmap.size(); ++i) {
        if (bitmap[i] == 0) continue;
        for (std::size_t c = 0; c < 3; ++c)
          image.pixels[3 * i + c] = static_cast<std::uint8_t>((image.pixels[3 * i + c] + color[c]) / 2);
      }
    }
    auto paint = [&](std::int64_t x, std::int64_t y) {
      if (x < 0 || y < 0 || x >= image.width || y >= image.height) return;
      std::copy(color, color + 3, &image.pixels[static_cast<std::size_t>(3 * (y * image.width + x))]);
    };
    const auto x0 = static_cast<std::int64_t>(instance.box[0]), y0 = static_cast<std::int64_t>(instance.box[1]);
    const auto x1 = static_cast<std::int64_t>(instance.box[2]) - 1, y1 = static_cast<std::int64_t>(instance.box[3]) - 1;
    for (std::int64_t width = 0; width < 2; ++width) {
      for (std::int64_t x = x0; x <= x1; ++x) paint(x, y0 + width), paint(x, y1 - width);
      for (std::int64_t y = y0; y <= y1; ++y) paint(x0 + width, y), paint(x1 - width, y);
    }
  }
}

CocoFile::CocoFile(const ModelInfo& info) : info_(info) {}

void CocoFile::add(const std::string& name, std::int64_t height, std::int64_t width,
                   const std::vector<Instance>& instances) {
  ++image_count_;
  const std::string size = "[" + std::to_string(height) + ", " + std::to_string(width) + "]";
  images_ += std::string(image_count_ > 1 ? ",\n" : "") + "{\"id\": " + std::to_string(image_count_) +
             ", \"file_name\": " + quoted(name) + ", \"width\": " + std::to_string(width) +
             ", \"height\": " + std::to_string(height) + "}";
  for (const Instance& instance : instances) {
    ++annotation_count_;
    const double box[4] = {instance.box[0], instance.box[1],
                           static_cast<double>(instance.box[2]) - static_cast<double>(instance.box[0]),
                           static_cast<double>(instance.box[3]) - static_cast<double>(instance.box[1])};
    const auto label = static_cast<std::size_t>(instance.label);
    annotations_ += std::string(annotation_count_ > 1 ? ",\n" : "") + "{\"id\": " + std::to_string(annotation_count_) +
                    ", \"image_id\": " + std::to_string(image_count_) +
                    ", \"category_id\": " + std::to_string(info_.category_ids[label]) + ", \"bbox\": [" +
                    number(box[0]) + ", " + number(box[1]) + ", " + number(box[2]) + ", " + number(box[3]) +
                    "], \"score\": " + number(instance.score);
    double area = box[2] * box[3];
    if (!instance.runs.empty()) {
      annotations_ += ", \"segmentation\": {\"size\": " + size + ", \"counts\": " + quoted(rle_text(instance)) + "}";
      area = static_cast<double>(centermask::rle_area(runs_of(instance)));
    }
    annotations_ += ", \"area\": " + number(area) + ", \"iscrowd\": 0}";
  }
}

void CocoFile::write(const std::string& path) const {
  std::string categories;
  for (std::size_t i = 0; i < info_.classes.size(); ++i) {
    categories += std::string(i > 0 ? ",\n" : "") + "{\"id\": " + std::to_string(info_.category_ids[i]) +
                  ", \"name\": " + quoted(info_.classes[i]) + "}";
  }
  const std::string text = "{\"images\": [" + images_ + "],\n\"categories\": [" + categories +
                           "],\n\"annotations\": [" + annotations_ + "]}\n";
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
  const bool whole =
      file && std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() && std::fflush(file.get()) == 0;
  if (!whole) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace example
