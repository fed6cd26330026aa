// The operators' adapters, in a host of our own: as every version of the API that they know, by several threads at
// once, with wrong input; and, where the CUDA headers are there, for the CUDA provider on the emulated device. What the
// kernels compute is tested elsewhere: here two ways to them must agree.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "ort_host.h"
#ifdef CENTERMASK_HAS_CUDA
#include "device_memory.h"
#endif

namespace {

using namespace ort_host;

std::vector<float> noise(std::int64_t count, unsigned seed, float spread = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

Tensor floats(std::vector<std::int64_t> shape, unsigned seed, float spread = 1) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return tensor(kFloat, std::move(shape), noise(count, seed, spread));
}

double largest_difference(const Tensor& a, const Tensor& b) {
  if (a.shape != b.shape || a.type != b.type) return INFINITY;
  double largest = 0;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    largest = std::max<double>(largest, std::fabs(a.values<float>()[i] - b.values<float>()[i]));
  }
  return largest;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

bool has(const std::string& text, const char* part) {
  if (text.find(part) != std::string::npos) return true;
  std::printf("unexpected: %s\n", text.c_str());
  return false;
}

struct Convolution {
  Tensor x = floats({2, 6, 9, 7}, 1), weight = floats({5, 6, 3, 3}, 2, 0.2f), offset = floats({2, 18, 9, 7}, 3, 2),
         bias = floats({5}, 4), mask = floats({2, 9, 9, 7}, 5);
  std::vector<const Tensor*> inputs = {&x, &weight, &offset, &bias, &mask};
  Node node;

  explicit Convolution(bool constant) {
    node.attributes.lists["pads"] = {1, 1, 1, 1};
    node.attributes.texts["activation"] = "relu";
    node.inputs = inputs;
    node.constant = {false, constant, false, constant, false};
  }
};

Tensor convolve(int version, bool constant) {
  const Convolution own(constant);
  const Kernel kernel(find(operators(version), "DeformConv", kFloat, false), own.node);
  return kernel.run(own.inputs)[0];
}

void versions_agree() {
  const Tensor expected = convolve(17, false);
  double sum = 0;
  for (std::int64_t i = 0; i < expected.size(); ++i) sum += expected.values<float>()[i];
  CHECK(sum > 1);
  for (const int version : {15, 16, 17, 25, 32}) {
    for (const bool constant : {false, true}) CHECK(largest_difference(convolve(version, constant), expected) == 0);
    CHECK(version_asked_for() == std::min(version, 17));
    CHECK(find(operators(version), "DeformConv", kFloat, false)->version ==
          static_cast<unsigned>(std::min(version, 17)));
  }
  CHECK(has(message_of([] { operators(14); }), "needs ONNX Runtime 1.15 or newer, this is 1.14.0"));
}

// Runtimes between 1.17 and 1.23 crash where shapes are inferred and an optional input is left out.
void shape_inference_is_offered_where_it_is_safe() {
  for (const int version : {17, 20, 23, 25, 32}) {
    const auto all = operators(version);
    CHECK((find(all, "DeformConv", kFloat, false)->InferOutputShapeFn != nullptr) == (version >= 25));
    CHECK(find(all, "DecodeCenters", kFloat, false)->InferOutputShapeFn != nullptr);
  }
}

void wrong_input_is_refused() {
  for (const int version : {15, 17}) {
    const auto all = operators(version);
    Convolution own(true);
    const Kernel kernel(find(all, "DeformConv", kFloat, false), own.node);
    const Tensor wrong = floats({2, 9, 9, 7}, 6);
    auto inputs = own.inputs;
    inputs[2] = &wrong;
    CHECK(has(message_of([&] { kernel.run(inputs); }), "deform_conv2d: offset must be"));
    inputs = {&own.x, &own.weight};
    CHECK(message_of([&] { kernel.run(inputs); }) != "no error");
    inputs = own.inputs;
    inputs[3] = nullptr;
    CHECK(message_of([&] { kernel.run(inputs); }) == "no error");
    own.node.attributes.texts["activation"] = "gelu";
    CHECK(has(message_of([&] { Kernel(find(all, "DeformConv", kFloat, false), own.node); }), "none or relu, got gelu"));
    Node decode;
    decode.attributes.integers["top_k"] = -3;
    CHECK(has(message_of([&] { Kernel(find(all, "DecodeCenters", kFloat, false), decode); }), "at least 1, got -3"));
  }
}

void threads_share_a_kernel() {
  for (const int version : {15, 17}) {
    const Convolution own(true);
    const Kernel kernel(find(operators(version), "DeformConv", kFloat, false), own.node);
    const Tensor expected = kernel.run(own.inputs)[0];
    std::vector<std::thread> threads;
    std::vector<double> worst(4, INFINITY);
    for (std::size_t i = 0; i < worst.size(); ++i) {
      threads.emplace_back([&, i] {
        double largest = 0;
        for (int k = 0; k < 10; ++k)
          largest = std::max(largest, largest_difference(kernel.run(own.inputs)[0], expected));
        worst[i] = largest;
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const double value : worst) CHECK(value == 0);
  }
}

// From features and a heatmap to finished masks, by a chain of all operators but the first.
struct Chain {
  Tensor heatmap = floats({2, 3, 8, 9}, 7), features = floats({2, 8, 8, 9}, 8), params = floats({2, 5, 169}, 9, 0.4f);
  Tensor boxes, matrix, size;

  Chain() {
    std::vector<float> corners;
    for (int i = 0; i < 10; ++i) {
      for (const int value : {i, 2 + i, 25 + i, 22 + i}) corners.push_back(static_cast<float>(value));
    }
    boxes = tensor(kFloat, {2, 5, 4}, corners);
    matrix = tensor<double>(kDouble, {2, 2, 3}, {0.5, 0, 0, 0, 0.5, 0, 0.7, 0, 1, 0, 0.6, 2});
    size = tensor<std::int64_t>(kInt64, {2, 2}, {60, 70, 40, 50});
  }
};

#ifdef CENTERMASK_HAS_CUDA
// The device's memory (where it is emulated it is the host's, but elsewhere than a tensor's own bytes), freed in the
// end.
struct DevicePieces {
  std::vector<void*> pieces;
  ~DevicePieces() {
    for (void* piece : pieces) device_memory::release(piece);
  }
};

std::vector<void*>& device_pieces() {
  static DevicePieces all;
  return all.pieces;
}

void* device_allocate(std::size_t bytes) {
  void* piece = device_memory::allocate(bytes + 1);  // none gives null for nothing
  device_pieces().push_back(piece);
  return piece;
}

Tensor on_device(const Tensor& host) {
  Tensor result{host.type, host.shape, {}, device_allocate(host.bytes.size())};
  device_memory::copy(result.device, host.bytes.data(), host.bytes.size());
  return result;
}

Tensor on_host(const Tensor& device) {
  Tensor result = device;
  device_memory::copy(result.bytes.data(), device.device, result.bytes.size());
  result.device = nullptr;
  return result;
}
#endif

// Runs an operator on the CPU or on the device; `on_cpu` are the inputs that its description wants in host memory.
std::vector<Tensor> run(const char* name, const Node& node, std::vector<const Tensor*> inputs, bool cuda) {
  const auto all = operators(17);
  const CustomOp* op = find(all, name, inputs[0]->type, cuda);
  Node described = node;
  described.inputs = inputs;
  const Kernel kernel(op, described);
#ifdef CENTERMASK_HAS_CUDA
  if (cuda) {
    std::vector<Tensor> moved(inputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i] == nullptr || op->GetInputMemoryType(op, i) == kMemoryCpuInput) continue;
      moved[i] = on_device(*inputs[i]);
      inputs[i] = &moved[i];
    }
    std::vector<Tensor> outputs;
    for (const Tensor& output : kernel.run(inputs, &device_allocate)) outputs.push_back(on_host(output));
    return outputs;
  }
#endif
  return kernel.run(inputs);
}

std::vector<Tensor> chain(const Chain& own, bool cuda) {
  Node decode, masks;
  decode.attributes.integers["top_k"] = 5;
  decode.attributes.numbers["score_threshold"] = 0.55f;
  std::vector<Tensor> found = run("DecodeCenters", decode, {&own.heatmap}, cuda);
  std::vector<Tensor> patches = run("GatherPatches", {}, {&own.features, &found[2]}, cuda);
  std::vector<Tensor> runs =
      run("AssembleMasks", masks,
          {&own.features, &own.params, &own.boxes, &found[1], &found[3], &own.matrix, &own.size}, cuda);
  for (auto* more : {&patches, &runs}) found.insert(found.end(), more->begin(), more->end());
  return found;
}

void the_chain_gives_whole_masks() {
  const Chain own;
  const std::vector<Tensor> outputs = chain(own, false);
  const Tensor &count = outputs[3], &runs = outputs[5], &offsets = outputs[6];
  CHECK((offsets.shape == std::vector<std::int64_t>{11}));
  const std::int64_t pixels[2] = {60 * 70, 40 * 50};
  std::int64_t several = 0;
  for (std::int64_t row = 0; row < 10; ++row) {
    const std::int64_t begin = offsets.values<std::int64_t>()[row], end = offsets.values<std::int64_t>()[row + 1];
    std::int64_t sum = 0;
    for (std::int64_t i = begin; i < end; ++i) sum += runs.values<std::uint32_t>()[i];
    const bool is_there = row % 5 < count.values<std::int64_t>()[row / 5];
    CHECK(sum == (is_there ? pixels[row / 5] : 0));
    several += end - begin > 1 ? 1 : 0;
  }
  CHECK(several > 2);
  CHECK(offsets.values<std::int64_t>()[10] == runs.size());
}

#ifdef CENTERMASK_HAS_CUDA
void cuda_gives_what_the_cpu_gives() {
  const Convolution own(false);
  // Sums of 54 products of size 1 in another order.
  CHECK(largest_difference(run("DeformConv", own.node, own.inputs, true)[0],
                           run("DeformConv", own.node, own.inputs, false)[0]) < 1e-5);
  const Chain links;
  const std::vector<Tensor> expected = chain(links, false), actual = chain(links, true);
  CHECK(expected.size() == actual.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(expected[i].shape == actual[i].shape);
    if (expected[i].type == kFloat) {
      CHECK(largest_difference(expected[i], actual[i]) < 1e-6);
    } else if (i < 5) {
      CHECK(expected[i].bytes == actual[i].bytes);
    }
  }
  CHECK(has(message_of([&] {
              const Tensor wrong = floats({2, 9, 9, 7}, 6);
              auto inputs = own.inputs;
              inputs[2] = &wrong;
              run("DeformConv", own.node, inputs, true);
            }),
            "deform_conv2d: offset must be"));
}
#endif

}  // namespace

int main() {
  versions_agree();
  shape_inference_is_offered_where_it_is_safe();
  wrong_input_is_refused();
  threads_share_a_kernel();
  the_chain_gives_whole_masks();
#ifdef CENTERMASK_HAS_CUDA
  if (!device_memory::available()) return check_failures() == 0 ? device_memory::skip() : 1;
  cuda_gives_what_the_cpu_gives();
#endif
  return check_result();
}
