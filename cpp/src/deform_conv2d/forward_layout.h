// Forward's changes of layout: weight and x to the kernels' order, sums to the output. For sources compiled by
// centermask_isa_sources only.
#pragma once

#include <cstdint>

#include "deform_conv2d/kernels.h"
#include "simd/transpose.h"
#include "simd/vector.h"

namespace centermask::deform {
namespace {

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Walks over the columns of a group in the order of the weight, channel*taps + tap, and knows the place of each in the
// order of chunks.
class ColumnCursor {
 public:
  explicit ColumnCursor(const ForwardPlan& plan)
      : taps_(plan.shape.kernel_h * plan.shape.kernel_w),
        group_in_(plan.shape.in_channels / plan.shape.params.groups),
        chunk_taps_(plan.chunk_taps),
        chunk_channels_(plan.chunk_channels) {
    start_channel();
  }
  std::int64_t tap() const { return tap_; }
  std::int64_t channel() const { return channel_; }
  std::int64_t column() const { return column_; }
  void advance() {
    if (++tap_ == taps_) {
      tap_ = 0;
      ++channel_;
      start_channel();
    } else if (tap_ == tap_end_) {
      start_taps();
    } else {
      column_ += width_;
    }
  }

 private:
  void start_channel() {
    chunk_ = channel_ / chunk_channels_ * chunk_channels_;
    width_ = smaller(chunk_channels_, group_in_ - chunk_);
    start_taps();
  }
  void start_taps() {
    tap_end_ = smaller(tap_ + chunk_taps_, taps_);
    column_ = tap_ * group_in_ + (tap_end_ - tap_) * chunk_ + (channel_ - chunk_);
  }

  std::int64_t taps_, group_in_, chunk_taps_, chunk_channels_;
  std::int64_t tap_ = 0, channel_ = 0, chunk_ = 0, width_ = 0, tap_end_ = 0, column_ = 0;
};

// One block of out channels of a group, in the order and type of Product; zero beyond the last channel.
template <class T, class Product>
void pack_weight(const ForwardPlan& plan, const TensorView& weight, std::int64_t group, std::int64_t block,
                 void* packed) {
  constexpr int kN = kLanes<T>;
  const DeformConv2dShape& s = plan.shape;
  const std::int64_t group_out = s.out_channels / s.params.groups, group_in = s.in_channels / s.params.groups;
  const std::int64_t taps = s.kernel_h * s.kernel_w, first = block * kColumns<T>;
  const T* from = static_cast<const T*>(weight.data) + (group * group_out + first) * weight.stride[0];
  auto* to = static_cast<typename Product::Panel*>(packed);
  const bool dense = weight.stride[3] == 1 && weight.stride[2] == s.kernel_w && weight.stride[1] == taps;
  for (std::int64_t half = 0; half < kColumns<T>; half += kN) {
    ColumnCursor cursor(plan);
    std::int64_t k = 0;
    if (dense && first + half + kN <= group_out) {
      for (; k + kN <= taps * group_in; k += kN) {
        Vector<T> v[kN];
        for (int i = 0; i < kN; ++i) v[i] = load(from + (half + i) * weight.stride[0] + k);
        transpose_square<T>(v);
        for (int i = 0; i < kN; ++i) {
          Product::put_weight(to, cursor.column(), half, v[i]);
          cursor.advance();
        }
      }
    }
    for (; k < taps * group_in; ++k) {
      const std::int64_t tap = cursor.tap();
      const T* element = from + half * weight.stride[0] + cursor.channel() * weight.stride[1] +
                         tap / s.kernel_w * weight.stride[2] + tap % s.kernel_w * weight.stride[3];
      T column[kN];
      for (std::int64_t i = 0; i < kN; ++i) {
        column[i] = first + half + i < group_out ? element[i * weight.stride[0]] : T(0);
      }
      Product::put_weight(to, cursor.column(), half, load(column));
      cursor.advance();
    }
  }
}

template <class T>
void copy_rows(const ForwardArguments& a, std::int64_t n, std::int64_t row, std::int64_t row_end) {
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t pixel_stride = a.plan.pixel_stride;
  T* image = static_cast<T*>(a.pixels) + (n - a.first_image) * a.plan.image_stride;
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

// One vector of out channels of a tile, from sums [positions][columns] to the output, with bias and activation. It goes
// through `staging` [lanes][staging_stride], so that each row of the output is written in one go: rows are often a
// power of two apart, and share few sets of the caches.
template <class T>
__attribute__((noinline)) void write_channels(const ForwardArguments& a, const T* sums, std::int64_t channel,
                                              std::int64_t channels, std::int64_t first, std::int64_t positions,
                                              T* staging, std::int64_t staging_stride) {
  constexpr int kN = kLanes<T>;
  const DeformConv2dShape& s = a.plan.shape;
  const std::int64_t out_pixels = s.out_height * s.out_width;
  const bool relu = s.params.activation == Activation::kRelu;
  T bias[kN] = {};
  for (std::int64_t i = 0; i < channels && a.bias.rank >= 0; ++i) {
    bias[i] = static_cast<const T*>(a.bias.data)[(channel + i) * a.bias.stride[0]];
  }
  const Vector<T> added = load(bias);
  for (std::int64_t p = 0; p < positions; p += kN) {
    Vector<T> v[kN];
    for (int i = 0; i < kN; ++i) {
      const Vector<T> value = load(sums + (p + i) * kColumns<T>) + added;
      v[i] = relu ? (value < 0 ? Vector<T>{} : value) : value;
    }
    transpose_square<T>(v);
    for (int i = 0; i < kN; ++i) store(staging + i * staging_stride + p, v[i]);
  }
  for (std::int64_t done = 0; done < positions;) {
    const std::int64_t n = (first + done) / out_pixels, pixel = (first + done) % out_pixels;
    const std::int64_t run = smaller(out_pixels - pixel, positions - done);
    T* to = static_cast<T*>(a.output.data) + (n * s.out_channels + channel) * out_pixels + pixel;
    for (std::int64_t i = 0; i < channels; ++i) {
      const T* from = staging + i * staging_stride + done;
      std::int64_t p = 0;
      for (; p + kN <= run; p += kN) store(to + i * out_pixels + p, load(from + p));
      for (; p < run; ++p) to[i * out_pixels + p] = from[p];
    }
    done += run;
  }
}

}  // namespace
}  // namespace centermask::deform
