// How a backward call on CUDA is divided: plain C++, the same for every device, so that results are too.
#pragma once

#include <cstdint>

#include "centermask/deform_conv2d.h"

namespace centermask::deform_cuda {

struct BackwardPlan {
  DeformConv2dShape shape;
  bool need_x = false, need_weight = false, need_places = false, need_bias = false;  // places: offset or mask
  bool fixed_point = false;                                                          // grad_x is summed in integers
  std::int64_t positions = 0;

  // Channels of x that share group and offset group come in runs; in the workspace each begins on 16 bytes.
  std::int64_t runs = 0, run = 0, padded_run = 0, chunks_per_run = 0;  // chunks of 64 channels
  std::int64_t group_out = 0, out_stride = 0;                          // out channels of a group, and padded
  std::int64_t pixel_stride = 0, grad_stride = 0;
  // Whether x, grad_output and grad_x are used where they are; otherwise they have copies in the workspace.
  bool direct_x = false, direct_grads = false, direct_grad_x = false;
  bool grad_x_channels_last = false;

  std::int64_t slices = 0;  // of 128 bytes of out channels
  bool resident = false;
  std::int64_t taps_at_once = 0, tap_groups = 0, chunks_at_once = 0, place_splits = 0;

  std::int64_t warps_out = 0, out_tiles = 0, column_groups = 0, column_tiles = 0;
  std::int64_t positions_at_once = 0, weight_splits = 0;
  std::int64_t bias_at_once = 0, bias_splits = 0;

  // How many products add up in one element of grad_x, at most, as a power of two.
  std::int64_t headroom = 0;
};

BackwardPlan plan_backward(const TensorView& grad_output, const TensorView& x, const TensorView& weight,
                           const TensorView& offset, const TensorView& mask, const DeformConv2dParams& params,
                           const DeformConv2dGradients& gradients);

}  // namespace centermask::deform_cuda
