// What an operator is made of: a description (Op), and a kernel for each node of a session.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api.h"
#include "centermask/cuda.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"

namespace centermask::ort {

// Throws Error(kRuntime) with the runtime's message if a call failed, and releases the status.
void check(const Api& api, Status* status);

// The attributes and constant inputs of a node, when its kernel is made.
class NodeInfo {
 public:
  NodeInfo(const Api& api, const KernelInfo* info) : api_(api), info_(info) {}

  // Attributes; the default where the node has none of that name. Throws Error(kType) where it is of another type.
  std::int64_t integer(const char* name, std::int64_t otherwise) const;
  float number(const char* name, float otherwise) const;
  std::string text(const char* name, const char* otherwise) const;
  std::vector<std::int64_t> integers(const char* name) const;  // empty where there is none

  // An input that is the same in every run, on the CPU; absent if it is not.
  TensorView constant_input(std::size_t index) const;

 private:
  void refuse_other_types(const char* name, const char* expected) const;

  const Api& api_;
  const KernelInfo* info_;
};

// The inputs and outputs of one run.
class Run {
 public:
  Run(const Api& api, KernelContext* context, DeviceType device);
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Absent where the node leaves it out. `on_cpu`: whether the description asked for it in host memory.
  TensorView input(std::size_t index, bool on_cpu = false) const;
  // A new tensor of the runtime's, row-major, where the kernel runs.
  TensorView output(std::size_t index, const std::vector<std::int64_t>& shape) const;

  // The runtime's own threads where its version lends them (17), else a pool of this library's.
  const ParallelFor& parallel_for() const { return parallel_for_; }
  // Where CUDA work of this run goes; kernels of the CUDA provider only.
  CudaStream stream() const;

  struct RuntimeThreads {
    const Api* api;
    const KernelContext* context;
  };

 private:
  TensorView view_of(const Value* value, bool on_cpu) const;

  const Api& api_;
  KernelContext* context_;
  DeviceType device_;
  std::size_t input_count_ = 0;
  RuntimeThreads threads_;
  ParallelFor parallel_for_;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Run& run) const = 0;  // by several threads at once
};

// A size that is known, has a name in the model, or neither.
struct Dim {
  std::int64_t size = -1;
  std::string name;
};
using Dims = std::vector<Dim>;

// What is known of a node before it runs.
class ShapeInference {
 public:
  ShapeInference(const Api& api, ShapeContext* context) : api_(api), context_(context) {}

  Dims input(std::size_t index) const;  // empty where not even the rank is known
  ElementType input_type(std::size_t index) const;
  void set_output(std::size_t index, ElementType type, const Dims& dims) const;
  std::optional<std::int64_t> integer(const char* name) const;
  std::vector<std::int64_t> integers(const char* name, std::size_t count, std::int64_t otherwise) const;

 private:
  const TensorInfo* info(std::size_t index) const;
  const Attribute* attribute(const char* name) const;

  const Api& api_;
  ShapeContext* context_;
};

struct Argument {
  ElementType type;
  bool optional = false;
  bool on_cpu = false;  // wanted in host memory, whatever the provider
};

struct Description {
  const char* name;
  DeviceType device;
  std::vector<Argument> inputs;
  std::vector<ElementType> outputs;
  std::unique_ptr<Kernel> (*create)(const NodeInfo& node, const Description& description);
  // The runtime asks one variant of an operator for all of them: types of outputs must come from those of the inputs.
  void (*infer)(const ShapeInference& shapes) = nullptr;
};

// One file for each operator; adds its variants (type, device).
void describe_deform_conv(std::vector<Description>& operators);
void describe_decode_centers(std::vector<Description>& operators);
void describe_gather_patches(std::vector<Description>& operators);
void describe_assemble_masks(std::vector<Description>& operators);

// Calls describe(type, device) for each combination that this build has.
template <class Describe>
void for_each_variant(Describe describe) {
  for (ElementType type : {kFloat, kFloat16}) {
    describe(type, DeviceType::kCpu);
#ifdef CENTERMASK_HAS_CUDA
    describe(type, DeviceType::kCuda);
#endif
  }
}

}  // namespace centermask::ort
