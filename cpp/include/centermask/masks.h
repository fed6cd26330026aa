// Instance masks from mask features, at the resolution of the image.
//
// Each instance has a value field v on the cells of the mask features; cell (i, j) has its centre at the input point
// (stride * (j + 0.5), stride * (i + 0.5)). A pixel of the image is inside the mask where
//   v, bilinearly interpolated at the pixel's centre, is >= threshold (cells at the edge of the map continue beyond
//   it), and the pixel's centre, in input coordinates, lies in the instance's box grown by box_margin * (width, height)
//   on each side (x0 <= x < x1, y0 <= y < y1), and in the image.
// Values that are not finite are never inside, nor is anything that is interpolated from them. Boxes without area or
// that are not finite give empty masks. v is computed in float32, and only on the cells that the box touches.
//
// Boxes are xyxy in input pixels; image_to_input maps image pixels to input pixels. Pixel centres are at half-integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "centermask/cuda.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"
#include "centermask/workspace.h"

namespace centermask {

enum class MaskHead : std::uint8_t {
  // CondInst (arXiv 2003.05664): v is the logit of a network of 1x1 convolutions 10-8-8-1 with ReLU in between, whose
  // inputs are rel_x, rel_y and 8 mask features; rel = 2 * (cell centre - box centre) / max(box width, height, stride).
  // mask_params has 169 columns: weights [8, 10], [8, 8], [1, 8], then biases 8, 8, 1.
  kDynamic,
  // CenterMask (arXiv 2004.04446): v = sigmoid(shape) * sigmoid(saliency). mask_params has 1024 columns, the logits of
  // the 32x32 shape (y, x), stretched over the box and sampled bilinearly, clamped at its edge. Saliency are the mask
  // features: one channel, or one for each class, chosen by the instance's label.
  kShape,
};

struct AssembleMasksParams {
  MaskHead head = MaskHead::kDynamic;
  std::int64_t image_height = 0;
  std::int64_t image_width = 0;
  double image_to_input[6] = {1, 0, 0, 0, 1, 0};  // [2, 3] by rows; x_in = m[0] x + m[2], y_in = m[4] y + m[5]
  std::int64_t stride = 4;
  double threshold = 0;  // of v: a logit for kDynamic, a probability for kShape
  double box_margin = 0.1;
};

struct AssembleMasksInputs {
  TensorView mask_features;  // float32 (on CUDA also float16, bfloat16) [M, h, w], any strides
  TensorView mask_params;    // float32 (on CUDA also float16, bfloat16) [I, P], any strides
  TensorView boxes;          // float32 [I, 4], any strides
  TensorView labels;         // int64 [I], for kShape with M > 1; a negative label (no instance) gives an empty mask
};

// 0 for kDynamic, 0.5 for kShape.
double default_mask_threshold(MaskHead head);

// The masks as run lengths (see rle.h) of image_height x image_width pixels. offsets: int64 [I+1], always written;
// runs: uint32 [capacity]. Returns the number of runs needed, offsets[I]; where that exceeds the capacity, the runs are
// not written. Results do not depend on the number of threads. Scratch memory: the values of one instance's cells for
// each thread, and the runs themselves once more.
std::int64_t assemble_masks_cpu(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                                const TensorView& runs, const TensorView& offsets, const ParallelFor& parallel = {});

// The pixels that masks may cover: int64 [I, 4] of x, y, width, height, within the image; zeros where there are none.
void mask_windows(const AssembleMasksParams& params, const TensorView& boxes, const TensorView& windows);

// The same masks as bitmaps of 0 and 1, cropped to mask_windows(). bitmaps: uint8 [S], one window after the other, each
// row by row; S is the sum of their areas.
void assemble_bitmaps_cpu(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                          const TensorView& bitmaps, const ParallelFor& parallel = {});

// ---- CUDA, in device memory. mask_features and mask_params float32, float16 or bfloat16 (each as it likes), boxes
// float32. v is computed in float32 and crosses the threshold where it does on the CPU, up to rounding. A label that is
// not below M, an error on the CPU, gives an empty mask: nobody can look at it in time.
// runs uint32 [capacity], offsets int64 [I+1]: always written, so that offsets[I] > capacity tells, once the stream has
// come so far, that the runs did not fit and were not written. Three launches; the workspace has a few bytes for each
// instance and 127 columns of the image.
std::size_t assemble_masks_workspace_cuda(const AssembleMasksParams& params, const AssembleMasksInputs& inputs);

void assemble_masks_cuda(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                         const Workspace& workspace, const TensorView& runs, const TensorView& offsets,
                         const CudaStream& stream);

// Packed bitmaps of the whole image: bitmaps uint8 [I, image_height, (image_width + 7) / 8], the leftmost pixel in the
// lowest bit (NumPy's packbits with bitorder="little"). Exactly the pixels of assemble_masks_cuda. One launch, after a
// memset.
void assemble_bitmaps_cuda(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                           const TensorView& bitmaps, const CudaStream& stream);

}  // namespace centermask
