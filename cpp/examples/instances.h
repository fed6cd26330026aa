// From the network's output to instances in pixels of the picture, as the Python package's Predictor makes them.
#pragma once

#include <centermask/parallel.h>

#include <cstdint>
#include <string>
#include <vector>

#include "image_io.h"
#include "network.h"

namespace example {

struct Instance {
  float box[4] = {};  // xyxy, image pixels, clipped to the picture
  float score = 0;
  std::int64_t label = 0;           // index into ModelInfo::classes
  std::vector<std::uint32_t> runs;  // COCO run lengths (centermask/rle.h); empty for box-only models
};

// Those that score at least `score_threshold`, best first, without duplicates.
std::vector<Instance> to_instances(const NetworkOutput& output, const NetworkInput& input, const ModelInfo& info,
                                   double score_threshold, const centermask::ParallelFor& parallel);

// Masks tinted, boxes outlined.
void draw(Image& image, const std::vector<Instance>& instances);

// Pictures and their instances as one COCO file, like `centermask predict --coco` writes.
class CocoFile {
 public:
  explicit CocoFile(const ModelInfo& info);
  void add(const std::string& name, std::int64_t height, std::int64_t width, const std::vector<Instance>& instances);
  void write(const std::string& path) const;

 private:
  const ModelInfo& info_;
  std::string images_, annotations_;
  std::int64_t image_count_ = 0, annotation_count_ = 0;
};

}  // namespace example
