#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "array.h"
#include "centermask/deform_conv2d.h"
#include "register.h"

namespace centermask::python {

namespace {

constexpr const char* kOp = "deform_conv2d";

using Pair = std::array<std::int64_t, 2>;

DeformConv2dParams make_params(const Pair& stride, const Pair& padding, const Pair& dilation, std::int64_t groups,
                               bool relu) {
  DeformConv2dParams params;
  for (int i = 0; i < 2; ++i) {
    params.stride[i] = stride[static_cast<std::size_t>(i)];
    params.padding[i] = padding[static_cast<std::size_t>(i)];
    params.dilation[i] = dilation[static_cast<std::size_t>(i)];
  }
  params.groups = groups;
  params.activation = relu ? Activation::kRelu : Activation::kNone;
  return params;
}

// Memory for a call. The last piece of up to 64 MB is kept for the next call, since getting fresh pages from the system
// can cost as much as a small convolution. Lock-free, so that it works after fork() whatever other threads did.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : memory_(kept().exchange(nullptr)), bytes_(bytes) {
    if (memory_ != nullptr && *static_cast<std::size_t*>(memory_) >= bytes + kHeader) return;
    std::free(memory_);
    memory_ = nullptr;
    if (bytes > static_cast<std::size_t>(PTRDIFF_MAX) / 2) throw std::bad_alloc();
    const std::size_t size = (bytes + kHeader + 4095) / 4096 * 4096;
    memory_ = std::aligned_alloc(4096, size);
    if (memory_ == nullptr) throw std::bad_alloc();
    *static_cast<std::size_t*>(memory_) = size;
  }
  ~Memory() {
    if (*static_cast<std::size_t*>(memory_) <= std::size_t{64} << 20) memory_ = kept().exchange(memory_);
    std::free(memory_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Workspace workspace() const { return {static_cast<char*>(memory_) + kHeader, bytes_}; }

 private:
  static constexpr std::size_t kHeader = 64;  // holds the size; a cache line, to keep the alignment
  static std::atomic<void*>& kept() {
    static std::atomic<void*> memory{nullptr};
    return memory;
  }
  void* memory_;
  std::size_t bytes_;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

py::array output_array(const DeformConv2dShape& s) {
  return new_array(s.dtype, {s.batch, s.out_channels, s.out_height, s.out_width});
}

py::array forward(const py::object& x, const py::object& weight, const py::object& offset, const py::object& mask,
                  const py::object& bias, const Pair& stride, const Pair& padding, const Pair& dilation,
                  std::int64_t groups, bool relu, int threads) {
  const TensorView x_view = view_of(x, kOp, "x"), weight_view = view_of(weight, kOp, "weight");
  const TensorView offset_view = view_of(offset, kOp, "offset"), mask_view = view_of(mask, kOp, "mask", true);
  const TensorView bias_view = view_of(bias, kOp, "bias", true);
  const DeformConv2dParams params = make_params(stride, padding, dilation, groups, relu);
  const DeformConv2dShape shape = deform_conv2d_shape(x_view, weight_view, offset_view, mask_view, bias_view, params);
  py::array output = output_array(shape);
  const TensorView output_view = view_of(output, kOp, "output");
  const ParallelFor parallel_for = threads_of(threads);
  {
    py::gil_scoped_release release;
    const Memory memory(deform_conv2d_workspace_cpu(shape, parallel_for.threads, false));
    deform_conv2d_cpu(x_view, weight_view, nullptr, offset_view, mask_view, bias_view, params, memory.workspace(),
                      output_view, parallel_for);
  }
  return output;
}

py::tuple backward(const py::object& grad_output, const py::object& x, const py::object& weight,
                   const py::object& offset, const py::object& mask, const Pair& stride, const Pair& padding,
                   const Pair& dilation, std::int64_t groups, const std::array<bool, 5>& needs, int threads) {
  const TensorView grad_view = view_of(grad_output, kOp, "grad_output");
  const TensorView x_view = view_of(x, kOp, "x"), weight_view = view_of(weight, kOp, "weight");
  const TensorView offset_view = view_of(offset, kOp, "offset"), mask_view = view_of(mask, kOp, "mask", true);
  const DeformConv2dParams params = make_params(stride, padding, dilation, groups, false);
  const DeformConv2dShape shape = deform_conv2d_shape(x_view, weight_view, offset_view, mask_view, {}, params);
  DeformConv2dGradients gradients;
  py::object arrays[5] = {py::none(), py::none(), py::none(), py::none(), py::none()};
  const auto make = [&](std::size_t i, DType dtype, const std::vector<std::int64_t>& extents, TensorView& view) {
    if (!needs[i]) return;
    arrays[i] = new_array(dtype, extents);
    view = view_of(arrays[i], kOp, "gradient");
  };
  const auto extents = [](const TensorView& view) {
    return std::vector<std::int64_t>(view.shape, view.shape + view.rank);
  };
  make(0, shape.dtype, extents(x_view), gradients.x);
  make(1, shape.dtype, extents(weight_view), gradients.weight);
  make(2, offset_view.dtype, extents(offset_view), gradients.offset);
  if (mask_view.present()) make(3, mask_view.dtype, extents(mask_view), gradients.mask);
  make(4, shape.dtype, {shape.out_channels}, gradients.bias);
  const ParallelFor parallel_for = threads_of(threads);
  {
    py::gil_scoped_release release;
    const Memory memory(deform_conv2d_backward_workspace_cpu(shape, parallel_for.threads));
    deform_conv2d_backward_cpu(grad_view, x_view, weight_view, offset_view, mask_view, params, memory.workspace(),
                               gradients, parallel_for);
  }
  return py::make_tuple(arrays[0], arrays[1], arrays[2], arrays[3], arrays[4]);
}

#ifdef CENTERMASK_HAS_CUDA
void forward_on_cuda(const py::object& x, const py::object& weight, const py::object& offset, const py::object& mask,
                     const py::object& bias, const py::object& output, const Pair& stride, const Pair& padding,
                     const Pair& dilation, std::int64_t groups, bool relu, bool allow_tf32, const py::object& allocate,
                     std::uintptr_t stream_handle) {
  const TensorView x_view = device_view_of(x, kOp, "x"), weight_view = device_view_of(weight, kOp, "weight");
  const TensorView offset_view = device_view_of(offset, kOp, "offset");
  const TensorView mask_view = device_view_of(mask, kOp, "mask", true);
  const TensorView bias_view = device_view_of(bias, kOp, "bias", true);
  const TensorView output_view = device_view_of(output, kOp, "output");
  const int device = check_devices(kOp, {{"x", x_view},
                                         {"weight", weight_view},
                                         {"offset", offset_view},
                                         {"mask", mask_view},
                                         {"bias", bias_view},
                                         {"output", output_view}});
  DeformConv2dParams params = make_params(stride, padding, dilation, groups, relu);
  params.allow_tf32 = allow_tf32;
  deform_conv2d_shape(x_view, weight_view, offset_view, mask_view, bias_view, params);
  const DeviceMemory memory(allocate,
                            deform_conv2d_workspace_cuda(x_view, weight_view, offset_view, mask_view, params));
  py::gil_scoped_release release;
  deform_conv2d_cuda(x_view, weight_view, offset_view, mask_view, bias_view, params, memory.workspace(), output_view,
                     stream_of(stream_handle, device));
}

// `gradients`: by x, weight, offset, mask, bias; None for those that are not wanted.
void backward_on_cuda(const py::object& grad_output, const py::object& x, const py::object& weight,
                      const py::object& offset, const py::object& mask, const std::array<py::object, 5>& gradients,
                      const Pair& stride, const Pair& padding, const Pair& dilation, std::int64_t groups,
                      bool allow_tf32, bool deterministic, const py::object& allocate, std::uintptr_t stream_handle) {
  const TensorView grad_view = device_view_of(grad_output, kOp, "grad_output");
  const TensorView x_view = device_view_of(x, kOp, "x"), weight_view = device_view_of(weight, kOp, "weight");
  const TensorView offset_view = device_view_of(offset, kOp, "offset");
  const TensorView mask_view = device_view_of(mask, kOp, "mask", true);
  const DeformConv2dGradients views = {
      device_view_of(gradients[0], kOp, "gradients[0]", true), device_view_of(gradients[1], kOp, "gradients[1]", true),
      device_view_of(gradients[2], kOp, "gradients[2]", true), device_view_of(gradients[3], kOp, "gradients[3]", true),
      device_view_of(gradients[4], kOp, "gradients[4]", true)};
  const int device = check_devices(kOp, {{"x", x_view},
                                         {"weight", weight_view},
                                         {"offset", offset_view},
                                         {"mask", mask_view},
                                         {"grad_output", grad_view},
                                         {"gradients[0]", views.x},
                                         {"gradients[1]", views.weight},
                                         {"gradients[2]", views.offset},
                                         {"gradients[3]", views.mask},
                                         {"gradients[4]", views.bias}});
  DeformConv2dParams params = make_params(stride, padding, dilation, groups, false);
  params.allow_tf32 = allow_tf32;
  params.deterministic = deterministic;
  deform_conv2d_shape(x_view, weight_view, offset_view, mask_view, {}, params);
  const DeviceMemory memory(allocate, deform_conv2d_backward_workspace_cuda(grad_view, x_view, weight_view, offset_view,
                                                                            mask_view, params, views));
  py::gil_scoped_release release;
  deform_conv2d_backward_cuda(grad_view, x_view, weight_view, offset_view, mask_view, params, memory.workspace(), views,
                              stream_of(stream_handle, device));
}
#endif

// Weights in the kernels' order, with what is needed to check and run a call.
class PackedDeformConv2d {
 public:
  PackedDeformConv2d(const py::object& weight, const py::object& bias, const Pair& stride, const Pair& padding,
                     const Pair& dilation, std::int64_t groups, bool relu, bool allow_bf16, int threads)
      : bias_(bias), params_(make_params(stride, padding, dilation, groups, relu)) {
    params_.allow_bf16 = allow_bf16;
    const TensorView view = view_of(weight, kOp, "weight");
    uses_bf16_ = deform_conv2d_uses_bf16_cpu(view, params_);
    const std::size_t bytes = deform_conv2d_packed_bytes_cpu(view, params_);
    packed_.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!packed_) throw std::bad_alloc();
    // Only the shape is kept of the weight; a view of no memory, row-major.
    weight_ = make_view(nullptr, view.dtype, {view.shape[0], view.shape[1], view.shape[2], view.shape[3]});
    const ParallelFor parallel_for = threads_of(threads);
    py::gil_scoped_release release;
    deform_conv2d_pack_cpu(view, params_, packed_.get(), parallel_for);
  }

  py::array call(const py::object& x, const py::object& offset, const py::object& mask, int threads) const {
    const TensorView x_view = view_of(x, kOp, "x"), offset_view = view_of(offset, kOp, "offset");
    const TensorView mask_view = view_of(mask, kOp, "mask", true), bias_view = view_of(bias_, kOp, "bias", true);
    const DeformConv2dShape shape = deform_conv2d_shape(x_view, weight_, offset_view, mask_view, bias_view, params_);
    py::array output = output_array(shape);
    const TensorView output_view = view_of(output, kOp, "output");
    const ParallelFor parallel_for = threads_of(threads);
    {
      py::gil_scoped_release release;
      const Memory memory(deform_conv2d_workspace_cpu(shape, parallel_for.threads, true));
      deform_conv2d_cpu(x_view, weight_, packed_.get(), offset_view, mask_view, bias_view, params_, memory.workspace(),
                        output_view, parallel_for);
    }
    return output;
  }

  bool uses_bf16() const { return uses_bf16_; }

 private:
  py::object bias_;
  DeformConv2dParams params_;
  bool uses_bf16_ = false;
  TensorView weight_;
  std::unique_ptr<void, Free> packed_;
};

}  // namespace

void register_deform_conv2d(py::module_& module) {
  using py::arg;
  module.def("deform_conv2d", &forward, arg("x"), arg("weight"), arg("offset"), arg("mask"), arg("bias"), arg("stride"),
             arg("padding"), arg("dilation"), arg("groups"), arg("relu"), arg("threads"));
  module.def("deform_conv2d_backward", &backward, arg("grad_output"), arg("x"), arg("weight"), arg("offset"),
             arg("mask"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"), arg("needs"), arg("threads"));
#ifdef CENTERMASK_HAS_CUDA
  module.def("deform_conv2d_cuda", &forward_on_cuda, arg("x"), arg("weight"), arg("offset"), arg("mask"), arg("bias"),
             arg("output"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"), arg("relu"),
             arg("allow_tf32"), arg("allocate"), arg("stream_handle"));
  module.def("deform_conv2d_backward_cuda", &backward_on_cuda, arg("grad_output"), arg("x"), arg("weight"),
             arg("offset"), arg("mask"), arg("gradients"), arg("stride"), arg("padding"), arg("dilation"),
             arg("groups"), arg("allow_tf32"), arg("deterministic"), arg("allocate"), arg("stream_handle"));
#endif
  py::class_<PackedDeformConv2d>(module, "PackedDeformConv2d")
      .def(py::init<const py::object&, const py::object&, const Pair&, const Pair&, const Pair&, std::int64_t, bool,
                    bool, int>(),
           arg("weight"), arg("bias"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"), arg("relu"),
           arg("allow_bf16"), arg("threads"))
      .def_property_readonly("uses_bf16", &PackedDeformConv2d::uses_bf16)
      .def("__call__", &PackedDeformConv2d::call, arg("x"), arg("offset"), arg("mask"), arg("threads"));
}

}  // namespace centermask::python
