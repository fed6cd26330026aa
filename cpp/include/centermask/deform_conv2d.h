// Modulated deformable convolution (DCNv2, Zhu et al., arXiv 1811.11168), forward and backward.
//
// Semantics and layouts are those of ONNX DeformConv and torchvision's deform_conv2d:
//   x      [N, C, H, W]
//   weight [Co, C/groups, kh, kw]
//   offset [N, 2*offset_groups*kh*kw, Ho, Wo]  (dy, dx) interleaved for each tap, in input pixels
//   mask   [N, offset_groups*kh*kw, Ho, Wo]    optional, multiplies the sample
//   bias   [Co]                                optional
//   output [N, Co, Ho, Wo]                     Ho = (H + 2*padding - dilation*(kh-1) - 1) / stride + 1
// Tap (i, j) of output pixel (oy, ox) samples x bilinearly at
//   y = oy*stride - padding + i*dilation + dy,  x = ox*stride - padding + j*dilation + dx
// (pixel centres at integers), with zero outside the image. A sample at a NaN or infinite place counts as 0.
// x, weight, bias and output share one type: float32 or float64 on the CPU; float32, float16 or bfloat16 on CUDA.
// Offset and mask have that type or float32. Coordinates, weights of the interpolation and sums are never kept in half
// precision.
#pragma once

#include <cstddef>
#include <cstdint>

#include "centermask/cuda.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"
#include "centermask/workspace.h"

namespace centermask {

enum class Activation : std::uint8_t { kNone, kRelu };

// Pairs are (vertical, horizontal).
struct DeformConv2dParams {
  std::int64_t stride[2] = {1, 1};
  std::int64_t padding[2] = {0, 0};
  std::int64_t dilation[2] = {1, 1};
  std::int64_t groups = 1;
  Activation activation = Activation::kNone;
  bool allow_tf32 = false;  // CUDA, float32: products in TensorFloat-32 (10 bits of mantissa) on the tensor cores
  // CPU, float32, forward: products in bfloat16 (samples and weights rounded to 8 bits of mantissa, sums in float32)
  // where the processor has AVX512-BF16 and each group an even number of channels; in float32 elsewhere.
  bool allow_bf16 = false;
  bool deterministic = false;  // CUDA backward: the same bits on every run, at a price; forward always is
};

// What the arguments amount to, once they have been found to fit each other.
struct DeformConv2dShape {
  DType dtype = DType::kFloat32;
  std::int64_t batch = 0, in_channels = 0, height = 0, width = 0;
  std::int64_t out_channels = 0, kernel_h = 0, kernel_w = 0;
  std::int64_t out_height = 0, out_width = 0;
  std::int64_t offset_groups = 1;
  DeformConv2dParams params;

  std::int64_t taps() const { return kernel_h * kernel_w; }
  std::int64_t out_pixels() const { return out_height * out_width; }
};

// Checks everything that can be checked without reading data; throws Error naming the argument. Mask and bias may be
// absent. The same rules for every device.
DeformConv2dShape deform_conv2d_shape(const TensorView& x, const TensorView& weight, const TensorView& offset,
                                      const TensorView& mask, const TensorView& bias, const DeformConv2dParams& params);

// Constant weights can be brought into the kernels' order once. The packed form belongs to the instruction set in use
// when it was made, to params.allow_bf16 and to this library's build: keep it in memory, do not store it. 64-byte
// alignment is best.
std::size_t deform_conv2d_packed_bytes_cpu(const TensorView& weight, const DeformConv2dParams& params);
void deform_conv2d_pack_cpu(const TensorView& weight, const DeformConv2dParams& params, void* packed,
                            const ParallelFor& parallel_for = {});

// Whether allow_bf16 has an effect with this weight, on this processor and with the instruction set in use.
bool deform_conv2d_uses_bf16_cpu(const TensorView& weight, const DeformConv2dParams& params);

// Bytes of workspace for a call with these shapes and at most `threads` threads.
std::size_t deform_conv2d_workspace_cpu(const DeformConv2dShape& shape, int threads, bool packed);

// With `packed` (not null), the weight's data is not read, only its shape. Inputs may have any strides; the output is
// row-major. Identical results for every number of threads.
void deform_conv2d_cpu(const TensorView& x, const TensorView& weight, const void* packed, const TensorView& offset,
                       const TensorView& mask, const TensorView& bias, const DeformConv2dParams& params,
                       const Workspace& workspace, const TensorView& output, const ParallelFor& parallel_for = {});

// The gradients that are wanted; an absent view is not computed. All row-major, all overwritten.
struct DeformConv2dGradients {
  TensorView x, weight, offset, mask, bias;
};

std::size_t deform_conv2d_backward_workspace_cpu(const DeformConv2dShape& shape, int threads);

// Gradients of sum(output * grad_output) for activation none (params.activation is not looked at: multiply
// grad_output by the activation's derivative first). The derivative by an offset at a kink of the interpolation, a
// sample exactly on a pixel centre, is the one to the right (below). Deterministic for a given number of threads.
void deform_conv2d_backward_cpu(const TensorView& grad_output, const TensorView& x, const TensorView& weight,
                                const TensorView& offset, const TensorView& mask, const DeformConv2dParams& params,
                                const Workspace& workspace, const DeformConv2dGradients& gradients,
                                const ParallelFor& parallel_for = {});

// ---- CUDA: device memory throughout; inputs may have any strides (channels-last x is the fastest), outputs are
// row-major or, for `output` and gradients.x, dense channels-last.
std::size_t deform_conv2d_workspace_cuda(const TensorView& x, const TensorView& weight, const TensorView& offset,
                                         const TensorView& mask, const DeformConv2dParams& params);

void deform_conv2d_cuda(const TensorView& x, const TensorView& weight, const TensorView& offset, const TensorView& mask,
                        const TensorView& bias, const DeformConv2dParams& params, const Workspace& workspace,
                        const TensorView& output, const CudaStream& stream);

std::size_t deform_conv2d_backward_workspace_cuda(const TensorView& grad_output, const TensorView& x,
                                                  const TensorView& weight, const TensorView& offset,
                                                  const TensorView& mask, const DeformConv2dParams& params,
                                                  const DeformConv2dGradients& gradients);

void deform_conv2d_backward_cuda(const TensorView& grad_output, const TensorView& x, const TensorView& weight,
                                 const TensorView& offset, const TensorView& mask, const DeformConv2dParams& params,
                                 const Workspace& workspace, const DeformConv2dGradients& gradients,
                                 const CudaStream& stream);

}  // namespace centermask
