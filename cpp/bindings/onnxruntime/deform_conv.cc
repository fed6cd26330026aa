// centermask::DeformConv: inputs and attributes of ai.onnx::DeformConv, and `activation` ("none" or "relu").
#include <algorithm>

#include "centermask/deform_conv2d.h"
#include "centermask/error.h"
#include "half.h"
#include "kernel.h"
#ifdef CENTERMASK_HAS_CUDA
#include "cuda_memory.h"
#endif

namespace centermask::ort {

namespace {

void read_pair(const NodeInfo& node, const char* name, std::int64_t (&values)[2]) {
  const std::vector<std::int64_t> found = node.integers(name);
  if (found.empty()) return;
  if (found.size() != 2) {
    fail(ErrorKind::kValue, "DeformConv: attribute ", name, " must have 2 values, got ", found.size());
  }
  std::copy(found.begin(), found.end(), values);
}

DeformConv2dParams read_params(const NodeInfo& node) {
  DeformConv2dParams params;
  read_pair(node, "strides", params.stride);
  read_pair(node, "dilations", params.dilation);
  const std::vector<std::int64_t> pads = node.integers("pads");
  if (!pads.empty()) {
    if (pads.size() != 4 || pads[0] != pads[2] || pads[1] != pads[3]) {
      fail(ErrorKind::kUnsupported, "DeformConv: attribute pads must be 4 values, the same at the begin and the end");
    }
    params.padding[0] = pads[0], params.padding[1] = pads[1];
  }
  params.groups = node.integer("group", 1);
  const std::string activation = node.text("activation", "none");
  if (activation == "relu") {
    params.activation = Activation::kRelu;
  } else if (activation != "none") {
    fail(ErrorKind::kValue, "DeformConv: attribute activation must be none or relu, got ", activation);
  }
  return params;
}

class DeformConv : public Kernel {
 public:
  DeformConv(const NodeInfo& node, const Description& description)
      : device_(description.device),
        params_(read_params(node)),
        kernel_shape_(node.integers("kernel_shape")),
        offset_group_(node.integer("offset_group", 1)) {
    if (device_ == DeviceType::kCuda) return;
    const TensorView weight = node.constant_input(1);
    if (!weight.present() || weight.rank != 4 || weight.size() == 0) return;  // of a wrong one, compute() tells
    const Widened values(weight, {});
    const std::size_t bytes = deform_conv2d_packed_bytes_cpu(values.view(), params_);
    packed_memory_.reset(new char[bytes + kAlignment]);
    void* start = packed_memory_.get();
    std::size_t space = bytes + kAlignment;
    packed_ = std::align(kAlignment, bytes, start, space);
    deform_conv2d_pack_cpu(values.view(), params_, packed_);
  }

  void compute(const Run& run) const override {
    const TensorView x = run.input(0), weight = run.input(1), offset = run.input(2), bias = run.input(3),
                     mask = run.input(4);
    const DeformConv2dShape shape = deform_conv2d_shape(x, weight, offset, mask, bias, params_);
    check_attributes(shape);
    const TensorView output = run.output(0, {shape.batch, shape.out_channels, shape.out_height, shape.out_width});
    if (output.size() == 0) return;
    if (device_ == DeviceType::kCuda) {
      on_cuda(run, x, weight, offset, mask, bias, output);
    } else {
      on_cpu(run, x, weight, offset, mask, bias, output);
    }
  }

 private:
  static constexpr std::size_t kAlignment = 64;

  void check_attributes(const DeformConv2dShape& shape) const {
    if (!kernel_shape_.empty() &&
        (kernel_shape_.size() != 2 || kernel_shape_[0] != shape.kernel_h || kernel_shape_[1] != shape.kernel_w)) {
      fail(ErrorKind::kValue, "DeformConv: attribute kernel_shape is not that of the weight, ", shape.kernel_h, " x ",
           shape.kernel_w);
    }
    if (offset_group_ != shape.offset_groups) {
      fail(ErrorKind::kValue, "DeformConv: attribute offset_group is ", offset_group_, ", but the offset's shape has ",
           shape.offset_groups);
    }
  }

  void on_cpu(const Run& run, const TensorView& x, const TensorView& weight, const TensorView& offset,
              const TensorView& mask, const TensorView& bias, const TensorView& output) const {
    const ParallelFor& threads = run.parallel_for();
    const Widened x32(x, threads), offset32(offset, threads), mask32(mask, threads), bias32(bias, threads);
    // Of a packed weight only the shape is looked at.
    TensorView weight_shape = weight;
    weight_shape.dtype = DType::kFloat32;
    const Widened weight32(packed_ != nullptr ? weight_shape : weight, threads);
    const Narrowed output32(output);
    const DeformConv2dShape shape =
        deform_conv2d_shape(x32.view(), weight32.view(), offset32.view(), mask32.view(), bias32.view(), params_);
    const std::size_t bytes = deform_conv2d_workspace_cpu(shape, threads.threads, packed_ != nullptr);
    const std::unique_ptr<char[]> memory(new char[bytes]);
    deform_conv2d_cpu(x32.view(), weight32.view(), packed_, offset32.view(), mask32.view(), bias32.view(), params_,
                      {memory.get(), bytes}, output32.view(), threads);
    output32.finish(threads);
  }

#ifdef CENTERMASK_HAS_CUDA
  void on_cuda(const Run& run, const TensorView& x, const TensorView& weight, const TensorView& offset,
               const TensorView& mask, const TensorView& bias, const TensorView& output) const {
    const CudaStream stream = run.stream();
    const StreamMemory memory(stream, deform_conv2d_workspace_cuda(x, weight, offset, mask, params_));
    deform_conv2d_cuda(x, weight, offset, mask, bias, params_, memory.workspace(), output, stream);
  }
#else
  void on_cuda(const Run&, const TensorView&, const TensorView&, const TensorView&, const TensorView&,
               const TensorView&, const TensorView&) const {}
#endif

  DeviceType device_;
  DeformConv2dParams params_;
  std::vector<std::int64_t> kernel_shape_;
  std::int64_t offset_group_;
  std::unique_ptr<char[]> packed_memory_;
  void* packed_ = nullptr;  // within packed_memory_; null where the weight is no constant
};

// [N, Co, Ho, Wo]; the offset has the last two, and where its shape is not known they follow from x.
void infer(const ShapeInference& shapes) {
  const Dims x = shapes.input(0), weight = shapes.input(1), offset = shapes.input(2);
  if (x.size() != 4 || weight.size() != 4) return;
  Dims output = {x[0], weight[0], {}, {}};
  if (offset.size() == 4) {
    output[2] = offset[2], output[3] = offset[3];
  } else {
    const std::vector<std::int64_t> strides = shapes.integers("strides", 2, 1), pads = shapes.integers("pads", 4, 0),
                                    dilations = shapes.integers("dilations", 2, 1);
    for (std::size_t i = 0; i < 2; ++i) {
      const std::int64_t size = x[2 + i].size, taps = weight[2 + i].size;
      if (size < 0 || taps < 0 || strides[i] < 1) continue;
      output[2 + i].size = (size + pads[i] + pads[i + 2] - dilations[i] * (taps - 1) - 1) / strides[i] + 1;
    }
  }
  shapes.set_output(0, shapes.input_type(0), output);
}

}  // namespace

void describe_deform_conv(std::vector<Description>& operators) {
  for_each_variant([&](ElementType type, DeviceType device) {
    Description description;
    description.name = "DeformConv";
    description.device = device;
    description.inputs = {{type}, {type}, {type}, {type, true}, {type, true}};
    description.outputs = {type};
    description.create = [](const NodeInfo& node, const Description& own) -> std::unique_ptr<Kernel> {
      return std::make_unique<DeformConv>(node, own);
    };
    description.infer = &infer;
    operators.push_back(std::move(description));
  });
}

}  // namespace centermask::ort
