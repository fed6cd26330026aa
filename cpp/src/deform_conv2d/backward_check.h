// What deform_conv2d's backward asks of its arguments beyond the forward's rules, on every device.
#pragma once

#include "centermask/deform_conv2d.h"

namespace centermask::deform {

// Row-major; for CUDA grad_x also dense channels-last. Throws Error naming the argument.
void check_backward_arguments(const DeformConv2dShape& shape, const TensorView& grad_output, const TensorView& x,
                              const TensorView& weight, const TensorView& offset, const TensorView& mask,
                              const DeformConv2dGradients& gradients);

// Rank 4, [N, C, H, W], with the channels together and no gaps.
bool dense_channels_last(const TensorView& view);

}  // namespace centermask::deform
