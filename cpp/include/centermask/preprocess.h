// From a photograph to the input of a network in one pass: resize, pad, normalise, HWC -> CHW.
#pragma once

#include "centermask/cuda.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"

namespace centermask {

struct PreprocessParams {
  // image_to_input: (x, y) of the image to a * x + t of the input, row-major [2][3] = {a_x, 0, t_x, 0, a_y, t_y}.
  // Pixel centres lie at half-integers in both frames. A negative a mirrors.
  double image_to_input[6] = {1, 0, 0, 0, 1, 0};
  // In grey levels 0..255 and in the order of the input's channels.
  double mean[3] = {0, 0, 0};
  double std[3] = {1, 1, 1};
  bool swap_channels = false;  // input channel c is image channel 2 - c (BGR to RGB and back)
};

// image [H, W, 3]: uint8, any strides. out [3, h, w]: float32, rows without gaps (any stride between them).
// out[c, v, u] = (I(x, y) - mean[c]) / std[c], with (x, y) the image point that maps to (u + 0.5, v + 0.5) and I the
// bilinear interpolation of the pixels, each pixel beyond the image counting as 0 (cv2.warpAffine with
// INTER_LINEAR and BORDER_CONSTANT, but computed exactly).
void check_preprocess(const TensorView& image, const PreprocessParams& params, const TensorView& out);

void preprocess_cpu(const TensorView& image, const PreprocessParams& params, const TensorView& out,
                    const ParallelFor& parallel = {});

// On CUDA `out` may be float32 or float16; the image is in device memory. float32 results are those of
// the CPU on x86-64 bit for bit; float16 is these, rounded.
void preprocess_cuda(const TensorView& image, const PreprocessParams& params, const TensorView& out,
                     const CudaStream& stream);

}  // namespace centermask
