// A model file in ONNX Runtime, by its C API.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model_info.h"

namespace example {

// Of one picture: K rows, ordered by score; those from `count` on are empty.
struct NetworkOutput {
  std::int64_t rows = 0, count = 0;
  std::vector<float> boxes, scores;  // [K, 4] xyxy in input pixels, [K]
  std::vector<std::int64_t> labels;  // [K]
  std::vector<float> mask_params;    // [K, P], empty for box-only models
  std::vector<float> mask_features;  // [M, h, w]
  std::int64_t param_count = 0, features[3] = {};
  // Models exported with `--masks rle` make the masks themselves: row k has the runs offsets[k] .. offsets[k+1].
  std::vector<std::uint32_t> rle_counts;
  std::vector<std::int64_t> rle_offsets;
};

struct NetworkInput {
  const float* data = nullptr;  // [3, height, width]
  std::int64_t height = 0, width = 0;
  double image_to_input[6] = {1, 0, 0, 0, 1, 0};
  std::int64_t image_height = 0, image_width = 0;
};

struct NetworkOptions {
  std::string op_library;  // libcentermask_ort.so, which `fused` models need; none if empty
  int threads = 0;         // 0: one for each core
  bool cuda = false;
};

class Network {
 public:
  // Throws std::runtime_error with the runtime's message.
  Network(const std::string& path, const NetworkOptions& options);
  ~Network();

  const ModelInfo& info() const;
  NetworkOutput run(const NetworkInput& input) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Loads ONNX Runtime, libonnxruntime.so of 1.15 or newer; the first thing to do. Returns its version, "1.32.0". Loaded
// rather than linked, as its one symbol carries the version: a linked program would run with that version alone.
// Throws std::runtime_error.
std::string load_runtime(const std::string& library);

}  // namespace example
