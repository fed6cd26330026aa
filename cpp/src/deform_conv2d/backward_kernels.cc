// Backward: for a block of input channels, grad_columns = weight^T * grad_output by tiles; one pass over each sample
// that gives the gradients of its place, scatters to grad_x and replaces the column's gradient by the column itself;
// then grad_weight += columns^T * grad_output.
#include <cstdint>

#include "deform_conv2d/kernels.h"
#include "deform_conv2d/sampling.h"
#include "simd/vector.h"

#define CENTERMASK_JOIN2(a, b) a##b
#define CENTERMASK_JOIN(a, b) CENTERMASK_JOIN2(a, b)

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
  const std::int64_t width = a.plan.width, channels = a.blocks[block].channels;
  T* to = static_cast<T*>(a.pixels) + block_image(a.plan, block, n);
  for (std::int64_t c = 0; c < width; ++c) to[c] = 0;
  to += width;
  for (std::int64_t y = 0; y < s.height; ++y) {
    const T* from = static_cast<const T*>(a.x.data) + n * a.x.stride[0] + a.blocks[block].channel * a.x.stride[1] +
                    y * a.x.stride[2];
    for (std::int64_t x = 0; x < s.width; ++x) {
      for (std::int64_t c = 0; c < channels; ++c) to[c] = from[c * a.x.stride[1]];
      for (std::int64_t c = channels; c < width; ++c) to[c] = 0;
      to += width;
      from += a.x.stride[3];
    }
  }
}

// Image n of grad_output, out channels of the group, position-major and padded with zeros.
template <class T>
void copy_grad_rows(const BackwardArguments& a, std::int64_t group, std::int64_t n) {
  const DeformConv2dShape& s = a.plan.shape;
  const TensorView& grad = a.grad_output;
  const std::int64_t channels = group_out(a.plan), stride = a.plan.grad_stride;
  T* to = static_cast<T*>(a.grad_rows) + (group * a.plan.grad_rows + n * s.out_height * s.out_width) * stride;
  for (std::int64_t y = 0; y < s.out_height; ++y) {
    const T* from =
        static_cast<const T*>(grad.data) + n * grad.stride[0] + group * channels * grad.stride[1] + y * grad.stride[2];
    for (std::int64_t x = 0; x < s.out_width; ++x) {
      for (std::int64_t c = 0; c < channels; ++c) to[c] = from[c * grad.stride[1]];
      for (std::int64_t c = channels; c < stride; ++c) to[c] = 0;
      to += stride;
      from += grad.stride[3];
    }
  }
}

template <class T>
T* packed_block(const BackwardPlan& plan, void* memory, std::int64_t block, std::int64_t tap_group) {
  return static_cast<T*>(memory) + (block * tap_groups(plan) + tap_group) * plan.columns * group_out(plan);
}

// Column (tap, channel) of a group of taps is (tap - first tap)*width + channel.
template <class T>
void pack_weight(const BackwardArguments& a, std::int64_t block) {
  const BackwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const ChannelBlock& channels = a.blocks[block];
  const std::int64_t outs = group_out(plan), taps = s.kernel_h * s.kernel_w;
  const std::int64_t first_channel = channels.channel - channels.group * (s.in_channels / s.params.groups);
  for (std::int64_t g = 0; g < tap_groups(plan); ++g) {
    T* packed = packed_block<T>(plan, a.packed, block, g);
    for (std::int64_t k = 0; k < plan.columns * outs; ++k) packed[k] = 0;
    for (std::int64_t t = 0; t < plan.taps_at_once && g * plan.taps_at_once + t < taps; ++t) {
      const std::int64_t tap = g * plan.taps_at_once + t;
      for (std::int64_t out = 0; out < outs; ++out) {
        const T* from = static_cast<const T*>(a.weight.data) + (channels.group * outs + out) * a.weight.stride[0] +
                        first_channel * a.weight.stride[1] + tap / s.kernel_w * a.weight.stride[2] +
                        tap % s.kernel_w * a.weight.stride[3];
        for (std::int64_t c = 0; c < channels.channels; ++c) {
          const std::int64_t k = t * plan.width + c;
          packed[(k / kColumns<T> * outs + out) * kColumns<T> + k % kColumns<T>] = from[c * a.weight.stride[1]];
        }
      }
    }
  }
}

struct Scratch {
  std::int64_t panel, corners, dots, total;
};

template <class T>
Scratch scratch_of(const BackwardPlan& plan) {
  const std::int64_t rows = round_up(plan.tile_rows, 16);
  Scratch scratch;
  scratch.panel = 0;
  scratch.corners = round_up(plan.tile_rows * plan.panel_stride, 16);
  scratch.dots = scratch.corners + kCornerArrays * rows;
  scratch.total = scratch.dots + 4 * rows;
  return scratch;
}

template <class T>
std::int64_t scratch_elements(const BackwardPlan& plan) {
  return scratch_of<T>(plan).total;
}

template <class T>
inline __attribute__((always_inline)) T sum_lanes(Vector<T> v) {
  T part[kLanes<T>];
  store(part, v);
  for (int step = kLanes<T> / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) part[i] += part[i + step];
  }
  return part[0];
}

// One tap of the tile. `panel` holds the gradients of the tap's columns; afterwards, with kColumn, the columns.
// dots[k][p] = (column gradient) . (corner k) over the channels.
template <class T, bool kScatter, bool kColumn, bool kDots>
void resample(const BackwardPlan& plan, const Corners<T>& corners, const T* pixels, T* grad_pixels, std::int64_t first,
              std::int64_t positions, T* panel, T* const (&dots)[4]) {
  const std::int64_t out_pixels = plan.shape.out_height * plan.shape.out_width;
  const std::int64_t width = plan.width;
  std::int64_t image = first / out_pixels * plan.image_stride;
  std::int64_t next_image = out_pixels - first % out_pixels;
  for (std::int64_t p = 0; p < positions; ++p) {
    if (p == next_image) {
      image += plan.image_stride;
      next_image += out_pixels;
    }
    std::int64_t at[4];
    for (int k = 0; k < 4; ++k) at[k] = image + corners.index[k][p] * width;
    const Vector<T> w0 = splat(corners.weight[0][p]), w1 = splat(corners.weight[1][p]);
    const Vector<T> w2 = splat(corners.weight[2][p]), w3 = splat(corners.weight[3][p]);
    Vector<T> dot0{}, dot1{}, dot2{}, dot3{};
    T* row = panel + p * plan.panel_stride;
    for (std::int64_t c = 0; c < width; c += kLanes<T>) {
      const Vector<T> grad = load(row + c);
      if (kColumn || kDots) {
        const Vector<T> v0 = load(pixels + at[0] + c), v1 = load(pixels + at[1] + c);
        const Vector<T> v2 = load(pixels + at[2] + c), v3 = load(pixels + at[3] + c);
        if (kDots) {
          dot0 += grad * v0;
          dot1 += grad * v1;
          dot2 += grad * v2;
          dot3 += grad * v3;
        }
        if (kColumn) store(row + c, w0 * v0 + w1 * v1 + (w2 * v2 + w3 * v3));
      }
      if (kScatter) {
        // One after the other: corners outside the image all share the zero pixel.
        store(grad_pixels + at[0] + c, load(grad_pixels + at[0] + c) + w0 * grad);
        store(grad_pixels + at[1] + c, load(grad_pixels + at[1] + c) + w1 * grad);
        store(grad_pixels + at[2] + c, load(grad_pixels + at[2] + c) + w2 * grad);
        store(grad_pixels + at[3] + c, load(grad_pixels + at[3] + c) + w3 * grad);
      }
    }
    if (kDots) {
      dots[0][p] = sum_lanes<T>(dot0);
      dots[1][p] = sum_lanes<T>(dot1);
      dots[2][p] = sum_lanes<T>(dot2);
      dots[3][p] = sum_lanes<T>(dot3);
    }
  }
}

template <class T>
void resample_any(const BackwardPlan& plan, const Corners<T>& corners, const T* pixels, T* grad_pixels,
                  std::int64_t first, std::int64_t positions, T* panel, T* const (&dots)[4]) {
  using Function =
      void (*)(const BackwardPlan&, const Corners<T>&, const T*, T*, std::int64_t, std::int64_t, T*, T* const(&)[4]);
  static constexpr Function kFunctions[8] = {resample<T, false, false, false>, resample<T, false, false, true>,
                                             resample<T, false, true, false>,  resample<T, false, true, true>,
                                             resample<T, true, false, false>,  resample<T, true, false, true>,
                                             resample<T, true, true, false>,   resample<T, true, true, true>};
  const int which = 4 * int{plan.need_x} + 2 * int{plan.need_weight} + int{plan.need_places};
  kFunctions[which](plan, corners, pixels, grad_pixels, first, positions, panel, dots);
}

// From the four dot products to the derivatives by dy, dx and mask.
template <class T>
void place_gradients(const Corners<T>& corners, T* const (&dots)[4], std::int64_t positions, T* grad_y, T* grad_x,
                     T* grad_mask) {
  for (std::int64_t p = 0; p < positions; ++p) {
    const T below = corners.below[p], right = corners.right[p], mask = corners.mask[p];
    const T d0 = dots[0][p], d1 = dots[1][p], d2 = dots[2][p], d3 = dots[3][p];
    grad_y[p] = mask * ((1 - right) * (d2 - d0) + right * (d3 - d1));
    grad_x[p] = mask * ((1 - below) * (d1 - d0) + below * (d3 - d2));
    grad_mask[p] = (1 - below) * ((1 - right) * d0 + right * d1) + below * ((1 - right) * d2 + right * d3);
  }
}

template <class T>
T* grad_packed_of(const BackwardArguments& a, std::int64_t chunk, std::int64_t block, std::int64_t tap_group) {
  const std::int64_t size = a.plan.columns * a.plan.out_blocks * kColumns<T>;
  return static_cast<T*>(a.grad_packed) +
         ((chunk * a.plan.block_count + block) * tap_groups(a.plan) + tap_group) * size;
}

template <class T>
void task(const BackwardArguments& a, std::int64_t block, std::int64_t chunk, void* memory) {
  const BackwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const Scratch scratch = scratch_of<T>(plan);
  const std::int64_t rows_capacity = round_up(plan.tile_rows, 16);
  T* panel = static_cast<T*>(memory) + scratch.panel;
  const Corners<T> corners = make_corners(static_cast<T*>(memory) + scratch.corners, rows_capacity);
  T* dots_memory = static_cast<T*>(memory) + scratch.dots;
  T* const dots[4] = {dots_memory, dots_memory + rows_capacity, dots_memory + 2 * rows_capacity,
                      dots_memory + 3 * rows_capacity};

  const std::int64_t out_pixels = s.out_height * s.out_width, all_positions = s.batch * out_pixels;
  const std::int64_t taps = s.kernel_h * s.kernel_w, outs = group_out(plan);
  const std::int64_t image = chunk * plan.chunk_images;
  const std::int64_t image_end = image + plan.chunk_images < s.batch ? image + plan.chunk_images : s.batch;
  const T* pixels = static_cast<const T*>(a.pixels) + block_image(plan, block, 0);
  T* grad_pixels = static_cast<T*>(a.grad_pixels) + block_image(plan, block, 0);
  if (plan.need_x) {
    for (std::int64_t i = image * plan.image_stride; i < image_end * plan.image_stride; ++i) grad_pixels[i] = 0;
  }
  const std::int64_t block_columns = plan.columns * kColumns<T>;
  if (plan.need_weight) {
    T* grads = grad_packed_of<T>(a, chunk, block, 0);
    for (std::int64_t i = 0; i < tap_groups(plan) * plan.out_blocks * block_columns; ++i) grads[i] = 0;
  }

  const T* grad_rows = static_cast<const T*>(a.grad_rows) + a.blocks[block].group * plan.grad_rows * plan.grad_stride;
  for (std::int64_t first = image * out_pixels; first < image_end * out_pixels; first += plan.tile_rows) {
    const std::int64_t left = image_end * out_pixels - first;
    const std::int64_t positions = left < plan.tile_rows ? left : plan.tile_rows;
    const T* grads = grad_rows + first * plan.grad_stride;
    for (std::int64_t g = 0; g < tap_groups(plan); ++g) {
      const std::int64_t first_tap = g * plan.taps_at_once;
      const std::int64_t tap_end = first_tap + plan.taps_at_once < taps ? first_tap + plan.taps_at_once : taps;
      const std::int64_t columns = (tap_end - first_tap) * plan.width;
      if (plan.need_x || plan.need_places) {
        const T* packed = packed_block<T>(plan, a.packed, block, g);
        for (std::int64_t k = 0; k < columns; k += kColumns<T>) {
          for (std::int64_t row = 0; row < positions; row += kRows) {
            multiply_block<T, false>(grads + row * plan.grad_stride, plan.grad_stride, packed + k * outs, kColumns<T>,
                                     outs, panel + row * plan.panel_stride + k, plan.panel_stride, false);
          }
        }
      }
      for (std::int64_t tap = first_tap; tap < tap_end; ++tap) {
        find_corners<T, true>(s, a.offset, a.mask, a.blocks[block].offset_group, tap, first, positions, corners);
        resample_any(plan, corners, pixels, grad_pixels, first, positions, panel + (tap - first_tap) * plan.width,
                     dots);
        if (plan.need_places) {
          T* places = static_cast<T*>(a.places) + (block * taps + tap) * 3 * all_positions + first;
          place_gradients(corners, dots, positions, places, places + all_positions, places + 2 * all_positions);
        }
      }
      if (plan.need_weight) {
        T* grad_packed = grad_packed_of<T>(a, chunk, block, g);
        for (std::int64_t out_block = 0; out_block < plan.out_blocks; ++out_block) {
          for (std::int64_t k = 0; k < columns; k += kRows) {
            multiply_block<T, true>(panel + k, plan.panel_stride, grads + out_block * kColumns<T>, plan.grad_stride,
                                    positions, grad_packed + out_block * block_columns + k * kColumns<T>, kColumns<T>,
                                    true);
          }
        }
      }
    }
  }
}

// The block's part of image n of grad_x.
template <class T>
void finish_x(const BackwardArguments& a, std::int64_t block, std::int64_t n) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t pixels = s.height * s.width, width = a.plan.width;
  const T* from = static_cast<const T*>(a.grad_pixels) + block_image(a.plan, block, n) + width;
  T* to = static_cast<T*>(a.gradients.x.data) + (n * s.in_channels + a.blocks[block].channel) * pixels;
  constexpr std::int64_t kStrip = 64;
  for (std::int64_t p0 = 0; p0 < pixels; p0 += kStrip) {
    const std::int64_t p_end = p0 + kStrip < pixels ? p0 + kStrip : pixels;
    for (std::int64_t c = 0; c < a.blocks[block].channels; ++c) {
      for (std::int64_t p = p0; p < p_end; ++p) to[c * pixels + p] = from[p * width + c];
    }
  }
}

// The block's part of grad_weight: the chunks' sums, added in order.
template <class T>
void finish_weight(const BackwardArguments& a, std::int64_t block) {
  const BackwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const ChannelBlock& channels = a.blocks[block];
  const std::int64_t taps = s.kernel_h * s.kernel_w, outs = group_out(plan);
  const std::int64_t group_in = s.in_channels / s.params.groups;
  const std::int64_t first_channel = channels.channel - channels.group * group_in;
  for (std::int64_t out = 0; out < outs; ++out) {
    T* to =
        static_cast<T*>(a.gradients.weight.data) + ((channels.group * outs + out) * group_in + first_channel) * taps;
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      for (std::int64_t c = 0; c < channels.channels; ++c) {
        const std::int64_t k = tap % plan.taps_at_once * plan.width + c;
        const std::int64_t at = (out / kColumns<T> * plan.columns + k) * kColumns<T> + out % kColumns<T>;
        T sum = 0;
        for (std::int64_t chunk = 0; chunk < plan.chunk_count; ++chunk) {
          sum += grad_packed_of<T>(a, chunk, block, tap / plan.taps_at_once)[at];
        }
        to[c * taps + tap] = sum;
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

template <class T>
constexpr BackwardKernels kernels() {
  return {{kLanes<T>, kRows, kColumns<T>},
          copy_pixels<T>,
          copy_grad_rows<T>,
          pack_weight<T>,
          scratch_elements<T>,
          task<T>,
          finish_x<T>,
          finish_weight<T>,
          finish_places<T>,
          finish_bias<T>};
}

}  // namespace

extern const BackwardKernels CENTERMASK_JOIN(backward_kernels_, CENTERMASK_ISA)[2];
const BackwardKernels CENTERMASK_JOIN(backward_kernels_, CENTERMASK_ISA)[2] = {kernels<float>(), kernels<double>()};

}  // namespace centermask::deform
