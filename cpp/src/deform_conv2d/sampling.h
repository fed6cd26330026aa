// Where and with what weights the taps sample. For sources compiled by centermask_isa_sources only.
#pragma once

#include <cstdint>

#include "deform_conv2d/kernels.h"
#include "simd/vector.h"

namespace centermask::deform {
namespace {

constexpr std::int64_t kCornerPositions = 16;  // a multiple of every vector's lanes

// The four neighbours (top left, top right, bottom left, bottom right) of each sample of one tap at kCornerPositions
// positions. Neighbours outside the image are the zero pixel, index 0; pixel (y, x) has index 1 + y*W + x. Arrays
// within a block, so that computing them vectorises; blocks, so that whoever reads one position after the other touches
// few cache lines.
template <class T>
struct CornerBlock {
  Integer<T> index[4][kCornerPositions];
  T weight[4][kCornerPositions];  // bilinear weight times mask
};

template <class T>
constexpr std::int64_t kCornerElements = static_cast<std::int64_t>(sizeof(CornerBlock<T>) / sizeof(T));

// The place of each sample between its neighbours, for the backward pass. Arrays of whole corner blocks.
template <class T>
struct Places {
  T* below;  // fraction of the way from top to bottom
  T* right;  // and from left to right
  T* mask;
};

template <class T, class From>
void read_run(const void* data, std::int64_t start, std::int64_t step, std::int64_t count, T* to) {
  const From* from = static_cast<const From*>(data) + start;
  if (step == 1) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i * step]);
  }
}

// `count` values along one output row, of channel `channel` of image n.
template <class T>
void read_row(const TensorView& view, std::int64_t n, std::int64_t channel, std::int64_t row, std::int64_t column,
              std::int64_t count, T* to) {
  const std::int64_t start =
      n * view.stride[0] + channel * view.stride[1] + row * view.stride[2] + column * view.stride[3];
  if (view.dtype == DType::kFloat64) {
    read_run<T, double>(view.data, start, view.stride[3], count, to);
  } else {
    read_run<T, float>(view.data, start, view.stride[3], count, to);
  }
}

// The corners of tap `tap` of an offset group at the positions [first, first + count) of the batch.
// At y = -1 exactly the sample is outside and its value 0, yet its derivative by y looks to the right, into the image
// (likewise x): kAtEdge counts such samples as inside, for the backward pass. Without it, `places` is scratch.
template <class T, bool kAtEdge>
__attribute__((noinline)) void find_corners(const DeformConv2dShape& s, const TensorView& offset,
                                            const TensorView& mask, std::int64_t offset_group, std::int64_t tap,
                                            std::int64_t first, std::int64_t count, CornerBlock<T>* corners,
                                            const Places<T>& places) {
  const std::int64_t taps = s.kernel_h * s.kernel_w;
  const std::int64_t channel = offset_group * taps + tap;
  const std::int64_t pixels = s.out_height * s.out_width;
  T* ys = places.below;
  T* xs = places.right;
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t position = first + done;
    const std::int64_t n = position / pixels, row = position % pixels / s.out_width, column = position % s.out_width;
    std::int64_t run = s.out_width - column;
    if (run > count - done) run = count - done;
    read_row(offset, n, 2 * channel, row, column, run, ys + done);
    read_row(offset, n, 2 * channel + 1, row, column, run, xs + done);
    if (mask.rank >= 0) read_row(mask, n, channel, row, column, run, places.mask + done);
    const T y0 =
        static_cast<T>(row * s.params.stride[0] - s.params.padding[0] + tap / s.kernel_w * s.params.dilation[0]);
    const std::int32_t x0 = static_cast<std::int32_t>(column * s.params.stride[1] - s.params.padding[1] +
                                                      tap % s.kernel_w * s.params.dilation[1]);
    const std::int32_t step = static_cast<std::int32_t>(s.params.stride[1]);
    for (std::int64_t i = done; i < done + run; ++i) {
      ys[i] = y0 + ys[i];
      xs[i] = static_cast<T>(x0 + step * static_cast<std::int32_t>(i - done)) + xs[i];
    }
    done += run;
  }
  if (mask.rank < 0) {
    for (std::int64_t i = 0; i < count; ++i) places.mask[i] = 1;
  }

  const Vector<T> height = splat(static_cast<T>(s.height)), width = splat(static_cast<T>(s.width));
  const Vector<T> least = splat(static_cast<T>(-1));
  const Integer<T> h = static_cast<Integer<T>>(s.height), w = static_cast<Integer<T>>(s.width);
  for (std::int64_t i = 0; i < count; i += kLanes<T>) {
    Vector<T> y = load(ys + i), x = load(xs + i);
    // Comparisons give 0 or -1, all bits; they are false for NaN.
    const Integers<T> high_enough = kAtEdge ? (y >= least) & (x >= least) : (y > least) & (x > least);
    const Integers<T> inside = high_enough & (y < height) & (x < width);
    y = inside ? y : Vector<T>{};
    x = inside ? x : Vector<T>{};
    Integers<T> top = __builtin_convertvector(y, Integers<T>), left = __builtin_convertvector(x, Integers<T>);
    top += __builtin_convertvector(top, Vector<T>) > y;  // towards minus infinity, not zero
    left += __builtin_convertvector(left, Vector<T>) > x;
    const Vector<T> below = y - __builtin_convertvector(top, Vector<T>);
    const Vector<T> right = x - __builtin_convertvector(left, Vector<T>);
    const Integers<T> has_top = inside & (top >= 0), has_bottom = inside & (top + 1 < h);
    const Integers<T> has_left = left >= 0, has_right = left + 1 < w;
    const Integers<T> base = 1 + top * w + left;
    CornerBlock<T>& block = corners[i / kCornerPositions];
    const std::int64_t at = i % kCornerPositions;
    store_integers<T>(block.index[0] + at, has_top & has_left & base);
    store_integers<T>(block.index[1] + at, has_top & has_right & (base + 1));
    store_integers<T>(block.index[2] + at, has_bottom & has_left & (base + w));
    store_integers<T>(block.index[3] + at, has_bottom & has_right & (base + w + 1));
    const Vector<T> mask_values = load(places.mask + i);
    const Vector<T> lower = below * mask_values, upper = mask_values - lower;
    store(block.weight[0] + at, upper - upper * right);
    store(block.weight[1] + at, upper * right);
    store(block.weight[2] + at, lower - lower * right);
    store(block.weight[3] + at, lower * right);
    if (kAtEdge) {
      store(ys + i, below);
      store(xs + i, right);
    }
  }
}

}  // namespace
}  // namespace centermask::deform
