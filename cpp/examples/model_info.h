// What a model file says about itself: the metadata of docs/model_contract.md.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace example {

struct ModelInfo {
  std::string model;
  std::vector<std::string> classes;
  std::vector<std::int64_t> category_ids;
  std::string color;  // "rgb" or "bgr": order of the input's channels
  std::array<double, 3> mean{}, std{};
  std::int64_t size = 0;
  std::string size_policy;  // "fit", "fixed", "fixed_index" or "keep"
  std::int64_t stride = 4;
  std::int64_t top_k = 0;
  double score_threshold = 0;
  double max_overlap = 1;
  bool class_agnostic = false;
  std::string mask_head;  // "dynamic", "shape" or "none"
  double box_margin = 0;
};

// lookup: the text under a key ("centermask.size"), or nothing. Throws std::runtime_error that names the key.
ModelInfo read_model_info(const std::function<std::optional<std::string>(const std::string&)>& lookup);

}  // namespace example
