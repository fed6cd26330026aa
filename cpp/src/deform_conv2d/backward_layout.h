// Backward's changes of layout: the inputs to the kernels' order and the sums to the gradients. For sources compiled by
// centermask_isa_sources only.
#pragma once

#include <cstdint>

#include "deform_conv2d/kernels.h"
#include "simd/transpose.h"
#include "simd/vector.h"

namespace centermask::deform {
namespace {

std::int64_t tap_groups(const BackwardPlan& plan) {
  return (plan.shape.kernel_h * plan.shape.kernel_w + plan.taps_at_once - 1) / plan.taps_at_once;
}

std::int64_t group_out(const BackwardPlan& plan) { return plan.shape.out_channels / plan.shape.params.groups; }

std::int64_t block_image(const BackwardPlan& plan, std::int64_t block, std::int64_t n) {
  return (block * plan.shape.batch + n) * plan.image_stride;
}

// Image n of x, channels of the block, channels-last and padded with zeros.
template <class T>
void copy_pixels(const BackwardArguments& a, std::int64_t block, std::int64_t n) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t width = a.plan.width, channels = a.blocks[block].channels, pixels = s.height * s.width;
  T* to = static_cast<T*>(a.pixels) + block_image(a.plan, block, n);
  for (std::int64_t c = 0; c < width; ++c) to[c] = 0;
  to += width;
  for (std::int64_t p = 0; p < pixels && channels < width; ++p) {
    for (std::int64_t c = channels; c < width; ++c) to[p * width + c] = 0;
  }
  const T* from = static_cast<const T*>(a.x.data) + n * a.x.stride[0] + a.blocks[block].channel * a.x.stride[1];
  const bool one_run = a.x.stride[2] == s.width * a.x.stride[3];
  for (std::int64_t y = 0; y < s.height; y += one_run ? s.height : 1) {
    to_channels_last(from + y * a.x.stride[2], a.x.stride[1], a.x.stride[3], channels, one_run ? pixels : s.width,
                     to + y * s.width * width, width);
  }
}

// Image n of grad_output, out channels of the group, position-major and padded with zeros.
template <class T>
void copy_grad_rows(const BackwardArguments& a, std::int64_t group, std::int64_t n) {
  const DeformConv2dShape& s = a.plan.shape;
  const TensorView& grad = a.grad_output;
  const std::int64_t channels = group_out(a.plan), stride = a.plan.grad_stride, pixels = s.out_height * s.out_width;
  T* to = static_cast<T*>(a.grad_rows) + (group * a.plan.grad_rows + n * pixels) * stride;
  for (std::int64_t p = 0; p < pixels; ++p) {
    for (std::int64_t c = channels; c < stride; ++c) to[p * stride + c] = 0;
  }
  const T* from = static_cast<const T*>(grad.data) + n * grad.stride[0] + group * channels * grad.stride[1];
  const bool one_run = grad.stride[2] == s.out_width * grad.stride[3];
  for (std::int64_t y = 0; y < s.out_height; y += one_run ? s.out_height : 1) {
    to_channels_last(from + y * grad.stride[2], grad.stride[1], grad.stride[3], channels,
                     one_run ? pixels : s.out_width, to + y * s.out_width * stride, stride);
  }
}

template <class T>
T* packed_block(const BackwardPlan& plan, void* memory, std::int64_t block, std::int64_t tap_group) {
  return static_cast<T*>(memory) + (block * tap_groups(plan) + tap_group) * plan.columns * group_out(plan);
}

// Column (tap, channel) of a group of taps is (tap - first tap)*width + channel.
template <class T>
void pack_weight(const BackwardArguments& a, std::int64_t block) {
  constexpr int kN = kLanes<T>;
  const BackwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const ChannelBlock& channels = a.blocks[block];
  const std::int64_t outs = group_out(plan), taps = s.kernel_h * s.kernel_w;
  const std::int64_t group_in = s.in_channels / s.params.groups;
  const std::int64_t first_channel = channels.channel - channels.group * group_in;
  const TensorView& weight = a.weight;
  const bool dense = weight.stride[3] == 1 && weight.stride[2] == s.kernel_w && weight.stride[1] == taps &&
                     weight.stride[0] == group_in * taps;
  const T* end = static_cast<const T*>(weight.data) + s.out_channels * group_in * taps;
  for (std::int64_t g = 0; g < tap_groups(plan); ++g) {
    T* packed = packed_block<T>(plan, a.packed, block, g);
    const std::int64_t first_tap = g * plan.taps_at_once;
    const std::int64_t tap_end = first_tap + plan.taps_at_once < taps ? first_tap + plan.taps_at_once : taps;
    const bool full = channels.channels == plan.width && (tap_end - first_tap) * plan.width == plan.columns;
    for (std::int64_t k = 0; k < plan.columns * outs && !full; ++k) packed[k] = 0;
    for (std::int64_t out = 0; out < outs; ++out) {
      const T* from = static_cast<const T*>(weight.data) + (channels.group * outs + out) * weight.stride[0] +
                      first_channel * weight.stride[1];
      const auto at = [=](std::int64_t tap, std::int64_t c) {
        const std::int64_t k = (tap - first_tap) * plan.width + c;
        return packed + (k / kColumns<T> * outs + out) * kColumns<T> + k % kColumns<T>;
      };
      std::int64_t c = 0;
      // Vectors from channel after channel, of which the first lanes are this group's taps: turned over, each tap has
      // its channels side by side. They reach beyond the taps, and must not reach beyond the array.
      for (; dense && c + kN <= channels.channels && from + (c + kN) * taps + kN <= end; c += kN) {
        for (std::int64_t tap = first_tap; tap < tap_end; tap += kN) {
          Vector<T> v[kN];
          for (int i = 0; i < kN; ++i) v[i] = load(from + (c + i) * taps + tap);
          transpose_square<T>(v);
          for (int i = 0; i < kN && tap + i < tap_end; ++i) store(at(tap + i, c), v[i]);
        }
      }
      for (; c < channels.channels; ++c) {
        for (std::int64_t tap = first_tap; tap < tap_end; ++tap) {
          *at(tap, c) =
              from[c * weight.stride[1] + tap / s.kernel_w * weight.stride[2] + tap % s.kernel_w * weight.stride[3]];
        }
      }
    }
  }
}

template <class T>
T* grad_packed_of(const BackwardArguments& a, std::int64_t chunk, std::int64_t block, std::int64_t tap_group) {
  const std::int64_t size = a.plan.columns * a.plan.out_blocks * kColumns<T>;
  return static_cast<T*>(a.grad_packed) +
         ((chunk * a.plan.block_count + block) * tap_groups(a.plan) + tap_group) * size;
}

// The block's part of image n of grad_x.
template <class T>
void finish_x(const BackwardArguments& a, std::int64_t block, std::int64_t n) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t pixels = s.height * s.width, width = a.plan.width;
  const T* from = static_cast<const T*>(a.grad_pixels) + block_image(a.plan, block, n) + width;
  T* to = static_cast<T*>(a.gradients.x.data) + (n * s.in_channels + a.blocks[block].channel) * pixels;
  transpose(from, width, pixels, a.blocks[block].channels, to, pixels);
}

// The block's part of grad_weight: the chunks' sums, added in order.
template <class T>
void finish_weight(const BackwardArguments& a, std::int64_t block) {
  constexpr int kN = kLanes<T>;
  const BackwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const ChannelBlock& channels = a.blocks[block];
  const std::int64_t taps = s.kernel_h * s.kernel_w, outs = group_out(plan);
  const std::int64_t group_in = s.in_channels / s.params.groups, row = group_in * taps;
  T* to = static_cast<T*>(a.gradients.weight.data) + channels.group * outs * row +
          (channels.channel - channels.group * group_in) * taps;
  // kN out channels at a time, and as many columns in the order of the weight: channel*taps + tap.
  for (std::int64_t out = 0; out < outs; out += kN) {
    const std::int64_t count = outs - out < kN ? outs - out : kN;
    std::int64_t channel = 0, tap = 0;
    for (std::int64_t first = 0; first < channels.channels * taps; first += kN) {
      const std::int64_t columns = channels.channels * taps - first < kN ? channels.channels * taps - first : kN;
      Vector<T> v[kN] = {};
      for (std::int64_t i = 0; i < columns; ++i) {
        const std::int64_t k = tap % plan.taps_at_once * plan.width + channel;
        const std::int64_t at = (out / kColumns<T> * plan.columns + k) * kColumns<T> + out % kColumns<T>;
        for (std::int64_t chunk = 0; chunk < plan.chunk_count; ++chunk) {
          v[i] += load(grad_packed_of<T>(a, chunk, block, tap / plan.taps_at_once) + at);
        }
        if (++tap == taps) tap = 0, ++channel;
      }
      transpose_square<T>(v);
      for (std::int64_t i = 0; i < count; ++i) {
        if (columns == kN) {
          store(to + (out + i) * row + first, v[i]);
        } else {
          for (std::int64_t k = 0; k < columns; ++k) to[(out + i) * row + first + k] = v[i][k];
        }
      }
    }
  }
}

template <class T>
void write_run(const TensorView& view, std::int64_t at, const T* from, std::int64_t count, bool add) {
  if (view.dtype == DType::kFloat64) {
    double* to = static_cast<double*>(view.data) + at;
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<double>(from[i]) + (add ? to[i] : 0);
  } else {
    float* to = static_cast<float*>(view.data) + at;
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]) + (add ? to[i] : 0);
  }
}

// One tap of one offset group in image n of grad_offset and grad_mask: the blocks' sums, added in order.
template <class T>
void finish_places(const BackwardArguments& a, std::int64_t n, std::int64_t offset_group, std::int64_t tap) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t pixels = s.out_height * s.out_width, taps = s.kernel_h * s.kernel_w;
  const std::int64_t all_positions = s.batch * pixels, channel = offset_group * taps + tap;
  const std::int64_t channels = s.offset_groups * taps;
  bool add = false;
  for (std::int64_t block = 0; block < a.plan.block_count; ++block) {
    if (a.blocks[block].offset_group != offset_group) continue;
    const T* from = static_cast<const T*>(a.places) + (block * taps + tap) * 3 * all_positions + n * pixels;
    if (a.gradients.offset.rank >= 0) {
      const std::int64_t at = (n * channels + channel) * 2 * pixels;
      write_run(a.gradients.offset, at, from, pixels, add);
      write_run(a.gradients.offset, at + pixels, from + all_positions, pixels, add);
    }
    if (a.gradients.mask.rank >= 0) {
      write_run(a.gradients.mask, (n * channels + channel) * pixels, from + 2 * all_positions, pixels, add);
    }
    add = true;
  }
}

template <class T>
void finish_bias(const BackwardArguments& a, std::int64_t group, std::int64_t out_block) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t positions = s.batch * s.out_height * s.out_width, outs = group_out(a.plan);
  const T* from =
      static_cast<const T*>(a.grad_rows) + group * a.plan.grad_rows * a.plan.grad_stride + out_block * kColumns<T>;
  double total[kColumns<T>] = {};
  for (std::int64_t p0 = 0; p0 < positions; p0 += 64) {
    // Short sums in T, long ones in double: large maps lose no digits.
    Vector<T> sum0{}, sum1{};
    for (std::int64_t p = p0; p < p0 + 64 && p < positions; ++p) {
      sum0 += load(from + p * a.plan.grad_stride);
      sum1 += load(from + p * a.plan.grad_stride + kLanes<T>);
    }
    T part[kColumns<T>];
    store(part, sum0);
    store(part + kLanes<T>, sum1);
    for (std::int64_t j = 0; j < kColumns<T>; ++j) total[j] += static_cast<double>(part[j]);
  }
  T* to = static_cast<T*>(a.gradients.bias.data) + group * outs;
  for (std::int64_t j = 0; j < kColumns<T> && out_block * kColumns<T> + j < outs; ++j) {
    to[out_block * kColumns<T> + j] = static_cast<T>(total[j]);
  }
}

}  // namespace
}  // namespace centermask::deform
