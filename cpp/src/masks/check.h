#pragma once

#include "centermask/masks.h"

namespace centermask::masks {

// Shape rules, on both devices: all tensors must be on `device`. `op` is for the messages. On CUDA the labels' values
// are not checked; the kernels take one outside 0..M-1 for an empty mask.
void check_params(const AssembleMasksParams& params, const char* op);
void check_boxes(const TensorView& boxes, const Device& device, const char* op);
void check_inputs(const AssembleMasksParams& params, const AssembleMasksInputs& inputs, const Device& device,
                  const char* op);
// One-dimensional with `size` elements, or any number of them if that is negative.
void check_output(const TensorView& view, DType dtype, std::int64_t size, const Device& device, const char* op,
                  const char* argument);
void check_bitmaps(const TensorView& view, std::int64_t instances, std::int64_t height, std::int64_t row_bytes,
                   const Device& device, const char* op);

}  // namespace centermask::masks
