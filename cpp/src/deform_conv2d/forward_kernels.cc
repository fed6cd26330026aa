// Forward: samples go straight into the packed operand of a register-blocked matrix product.
#include <cstdint>

#include "deform_conv2d/kernels.h"
#include "deform_conv2d/sampling.h"
#include "simd/transpose.h"
#include "simd/vector.h"

#define CENTERMASK_JOIN2(a, b) a##b
#define CENTERMASK_JOIN(a, b) CENTERMASK_JOIN2(a, b)

namespace centermask::deform {
namespace {

// packed[(tap*C + c)*columns + j] = weight of out channel block*columns + j, zero beyond the last.
template <class T>
void pack_weight(const DeformConv2dShape& s, const TensorView& weight, std::int64_t group, std::int64_t block,
                 void* packed) {
  constexpr int kN = kLanes<T>;
  const std::int64_t group_out = s.out_channels / s.params.groups, group_in = s.in_channels / s.params.groups;
  const std::int64_t taps = s.kernel_h * s.kernel_w, first = block * kColumns<T>;
  const T* from = static_cast<const T*>(weight.data) + (group * group_out + first) * weight.stride[0];
  T* to = static_cast<T*>(packed);
  const bool dense = weight.stride[3] == 1 && weight.stride[2] == s.kernel_w && weight.stride[1] == taps;
  for (std::int64_t half = 0; half < kColumns<T>; half += kN) {
    std::int64_t k = 0;  // channel*taps + tap, the order of the weight
    if (dense && first + half + kN <= group_out) {
      std::int64_t channel = 0, tap = 0;
      for (; k + kN <= taps * group_in; k += kN) {
        Vector<T> v[kN];
        for (int i = 0; i < kN; ++i) v[i] = load(from + (half + i) * weight.stride[0] + k);
        transpose_square<T>(v);
        for (int i = 0; i < kN; ++i) {
          store(to + (tap * group_in + channel) * kColumns<T> + half, v[i]);
          if (++tap == taps) tap = 0, ++channel;
        }
      }
    }
    for (; k < taps * group_in; ++k) {
      const std::int64_t channel = k / taps, tap = k % taps;
      const T* element = from + half * weight.stride[0] + channel * weight.stride[1] +
                         tap / s.kernel_w * weight.stride[2] + tap % s.kernel_w * weight.stride[3];
      for (std::int64_t i = 0; i < kN; ++i) {
        to[(tap * group_in + channel) * kColumns<T> + half + i] =
            first + half + i < group_out ? element[i * weight.stride[0]] : T(0);
      }
    }
  }
}

template <class T>
void copy_rows(const ForwardArguments& a, std::int64_t n, std::int64_t row, std::int64_t row_end) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t pixel_stride = a.plan.pixel_stride;
  T* image = static_cast<T*>(a.pixels) + n * a.plan.image_stride;
  if (row == 0) {
    for (std::int64_t c = 0; c < pixel_stride; ++c) image[c] = 0;
  }
  const T* from = static_cast<const T*>(a.x.data) + n * a.x.stride[0];
  const bool one_run = a.x.stride[2] == s.width * a.x.stride[3];
  const std::int64_t run = one_run ? (row_end - row) * s.width : s.width;
  for (std::int64_t y = row; y < row_end; y += one_run ? row_end - row : 1) {
    to_channels_last(from + y * a.x.stride[2], a.x.stride[1], a.x.stride[3], s.in_channels, run,
                     image + (1 + y * s.width) * pixel_stride, pixel_stride);
  }
}

// Scratch of one tile, in this order.
struct Scratch {
  std::int64_t panel, sums, corners, total;
};

template <class T>
Scratch scratch_of(const ForwardPlan& plan) {
  const std::int64_t group_out = plan.shape.out_channels / plan.shape.params.groups;
  Scratch scratch;
  scratch.panel = 0;
  scratch.sums = round_up(plan.tile_rows * plan.panel_stride, 16);
  scratch.corners = scratch.sums + plan.tile_rows * round_up(group_out, kColumns<T>);
  scratch.total = scratch.corners + kCornerArrays * round_up(plan.tile_rows, 16);
  return scratch;
}

template <class T>
std::int64_t scratch_elements(const ForwardPlan& plan) {
  return scratch_of<T>(plan).total;
}

// Channels [channel, channel + count) of one tap at all positions of the tile, into columns of the panel.
// Whole vectors are read and written: what lies beyond the last channel is overwritten by the columns that follow.
template <class T>
void sample(const ForwardPlan& plan, const Corners<T>& corners, const T* pixels, std::int64_t first,
            std::int64_t positions, std::int64_t channel, std::int64_t count, T* panel) {
  const std::int64_t out_pixels = plan.shape.out_height * plan.shape.out_width;
  const std::int64_t pixel_stride = plan.pixel_stride;
  const T* image = pixels + first / out_pixels * plan.image_stride + channel;
  std::int64_t next_image = out_pixels - first % out_pixels;
  for (std::int64_t p = 0; p < positions; ++p) {
    if (p == next_image) {
      image += plan.image_stride;
      next_image += out_pixels;
    }
    const T* from0 = image + corners.index[0][p] * pixel_stride;
    const T* from1 = image + corners.index[1][p] * pixel_stride;
    const T* from2 = image + corners.index[2][p] * pixel_stride;
    const T* from3 = image + corners.index[3][p] * pixel_stride;
    const Vector<T> w0 = splat(corners.weight[0][p]), w1 = splat(corners.weight[1][p]);
    const Vector<T> w2 = splat(corners.weight[2][p]), w3 = splat(corners.weight[3][p]);
    T* to = panel + p * plan.panel_stride;
    for (std::int64_t c = 0; c < count; c += kLanes<T>) {
      store(to + c, w0 * load(from0 + c) + w1 * load(from1 + c) + (w2 * load(from2 + c) + w3 * load(from3 + c)));
    }
  }
}

// Columns [k, k_end) of a group's tap-major columns: tap * (C/groups) + channel.
template <class T>
void fill_panel(const ForwardArguments& a, std::int64_t group, std::int64_t k, std::int64_t k_end, std::int64_t first,
                std::int64_t positions, const Corners<T>& corners, T* panel) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t group_in = s.in_channels / s.params.groups;
  const std::int64_t offset_in = s.in_channels / s.offset_groups;
  while (k < k_end) {
    const std::int64_t tap = k / group_in, channel = group * group_in + k % group_in;
    const std::int64_t offset_group = channel / offset_in;
    std::int64_t count = group_in - k % group_in;
    if (count > k_end - k) count = k_end - k;
    if (count > offset_in - channel % offset_in) count = offset_in - channel % offset_in;
    find_corners<T, false>(s, a.offset, a.mask, offset_group, tap, first, positions, corners);
    sample(a.plan, corners, static_cast<const T*>(a.pixels), first, positions, channel, count, panel);
    panel += count;
    k += count;
  }
}

// sums [out block][tile_rows][columns] to the output, with bias and activation.
template <class T>
void write_tile(const ForwardArguments& a, std::int64_t group, std::int64_t first, std::int64_t positions, T* sums) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t group_out = s.out_channels / s.params.groups;
  const std::int64_t out_pixels = s.out_height * s.out_width;
  const bool relu = s.params.activation == Activation::kRelu;
  for (std::int64_t block = 0; block < group_out; block += kColumns<T>) {
    const std::int64_t columns = group_out - block < kColumns<T> ? group_out - block : kColumns<T>;
    T* block_sums = sums + block * a.plan.tile_rows;
    if (a.bias.rank >= 0 || relu) {
      T values[kColumns<T>] = {};
      for (std::int64_t j = 0; j < columns && a.bias.rank >= 0; ++j) {
        values[j] = static_cast<const T*>(a.bias.data)[(group * group_out + block + j) * a.bias.stride[0]];
      }
      for (std::int64_t p = 0; p < positions; ++p) {
        for (int half = 0; half < kColumns<T>; half += kLanes<T>) {
          T* at = block_sums + p * kColumns<T> + half;
          const Vector<T> value = load(at) + load(values + half);
          store(at, relu ? (value < 0 ? Vector<T>{} : value) : value);
        }
      }
    }
    for (std::int64_t done = 0; done < positions;) {
      const std::int64_t n = (first + done) / out_pixels, pixel = (first + done) % out_pixels;
      std::int64_t run = out_pixels - pixel;
      if (run > positions - done) run = positions - done;
      transpose(block_sums + done * kColumns<T>, kColumns<T>, run, columns,
                static_cast<T*>(a.output.data) + (n * s.out_channels + group * group_out + block) * out_pixels + pixel,
                out_pixels);
      done += run;
    }
  }
}

template <class T>
void tile(const ForwardArguments& a, std::int64_t first, std::int64_t positions, void* memory) {
  const ForwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const Scratch scratch = scratch_of<T>(plan);
  T* panel = static_cast<T*>(memory) + scratch.panel;
  T* sums = static_cast<T*>(memory) + scratch.sums;
  const Corners<T> corners = make_corners(static_cast<T*>(memory) + scratch.corners, round_up(plan.tile_rows, 16));

  const std::int64_t total = s.in_channels / s.params.groups * s.kernel_h * s.kernel_w;
  const std::int64_t out_blocks = round_up(s.out_channels / s.params.groups, kColumns<T>) / kColumns<T>;
  const T* packed = static_cast<const T*>(a.packed);
  for (std::int64_t group = 0; group < s.params.groups; ++group) {
    for (std::int64_t k = 0; k < total; k += plan.depth) {
      const std::int64_t depth = total - k < plan.depth ? total - k : plan.depth;
      fill_panel(a, group, k, k + depth, first, positions, corners, panel);
      for (std::int64_t block = 0; block < out_blocks; ++block) {
        const T* b = packed + ((group * out_blocks + block) * total + k) * kColumns<T>;
        T* block_sums = sums + block * plan.tile_rows * kColumns<T>;
        // The last rows may lie beyond the tile's positions: rows are independent, and those are never written out.
        for (std::int64_t row = 0; row < positions; row += kRows) {
          multiply_block<T, false>(panel + row * plan.panel_stride, plan.panel_stride, b, kColumns<T>, depth,
                                   block_sums + row * kColumns<T>, kColumns<T>, k != 0);
        }
      }
    }
    write_tile(a, group, first, positions, sums);
  }
}

template <class T>
constexpr ForwardKernels kernels() {
  return {{kLanes<T>, kRows, kColumns<T>}, pack_weight<T>, copy_rows<T>, scratch_elements<T>, tile<T>};
}

}  // namespace

extern const ForwardKernels CENTERMASK_JOIN(forward_kernels_, CENTERMASK_ISA)[2];
const ForwardKernels CENTERMASK_JOIN(forward_kernels_, CENTERMASK_ISA)[2] = {kernels<float>(), kernels<double>()};

}  // namespace centermask::deform
