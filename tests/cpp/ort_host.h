// A host for the operators that is no ONNX Runtime: the few functions of the C API that they call, on tensors of a
// test. Runs them under the sanitizers, as every version of the API, and with the emulated CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../../cpp/bindings/onnxruntime/api.h"

namespace ort_host {

using namespace centermask::ort;

struct Tensor {
  ElementType type = kFloat;
  std::vector<std::int64_t> shape;
  std::vector<char> bytes;
  void* device = nullptr;  // where the values are, if not in `bytes`

  std::int64_t size() const {
    std::int64_t n = 1;
    for (const std::int64_t extent : shape) n *= extent;
    return n;
  }
  template <class T>
  const T* values() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

inline std::size_t item_size(ElementType type) {
  return type == kFloat16 ? 2 : type == kInt64 || type == kDouble ? 8 : 4;
}

template <class T>
Tensor tensor(ElementType type, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  Tensor result{type, std::move(shape), {}, nullptr};
  result.bytes.resize(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(result.bytes.data(), values.data(), result.bytes.size());
  return result;
}

struct Attributes {
  std::map<std::string, std::int64_t> integers;
  std::map<std::string, float> numbers;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::vector<std::int64_t>> lists;
};

// What the opaque pointers of the API are, here.
struct Node {
  Attributes attributes;
  std::vector<const Tensor*> inputs;  // null where left out
  std::vector<bool> constant;
};

struct Call {
  std::vector<const Tensor*> inputs;
  std::vector<Tensor> outputs;
  void* (*allocate)(std::size_t) = nullptr;  // of the device; null: host
};

struct Problem {
  ErrorCode code;
  std::string message;
};

struct Registration {
  std::vector<const CustomOp*> operators;
};

// All operators that the library registers with a runtime of this version (of its 1.y). Throws std::runtime_error.
std::vector<const CustomOp*> operators(int version);

int version_asked_for();  // of the API, by the library

// The operator of a name for a type of its first input, on the CPU or for CUDA.
const CustomOp* find(const std::vector<const CustomOp*>& all, const std::string& name, ElementType type, bool cuda);

class Kernel {
 public:
  // Throws std::runtime_error with the operator's message.
  Kernel(const CustomOp* op, const Node& node);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  std::vector<Tensor> run(const std::vector<const Tensor*>& inputs, void* (*allocate)(std::size_t) = nullptr) const;

 private:
  const CustomOp* op_;
  void* kernel_ = nullptr;
};

}  // namespace ort_host
