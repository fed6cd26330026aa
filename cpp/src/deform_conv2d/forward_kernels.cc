// Forward: samples go straight into the packed operand of a register-blocked matrix product.
#include <cstdint>

#include "deform_conv2d/forward_layout.h"
#include "deform_conv2d/kernels.h"
#include "deform_conv2d/sampling.h"
#include "simd/vector.h"

#define CENTERMASK_JOIN2(a, b) a##b
#define CENTERMASK_JOIN(a, b) CENTERMASK_JOIN2(a, b)

namespace centermask::deform {
namespace {

// Scratch of one tile, in this order.
struct Scratch {
  std::int64_t panel, sums, staging, corners, places, total;
};

std::int64_t corner_rows(const ForwardPlan& plan) { return round_up(plan.tile_rows, kCornerPositions); }

template <class T>
std::int64_t staging_stride(const ForwardPlan& plan) {
  return round_up(plan.tile_rows, kLanes<T>) + kLanes<T>;
}

template <class T>
Scratch scratch_of(const ForwardPlan& plan) {
  const std::int64_t rows = corner_rows(plan);
  Scratch scratch;
  scratch.panel = 0;
  scratch.sums = round_up(plan.tile_rows * plan.panel_stride, 16);
  // Whole vectors of positions are read.
  scratch.staging = scratch.sums + plan.tile_rows * plan.slab + kLanes<T> * kColumns<T>;
  scratch.corners = round_up(scratch.staging + kLanes<T> * staging_stride<T>(plan), 16);
  scratch.places = scratch.corners + plan.chunk_taps * (rows / kCornerPositions) * kCornerElements<T>;
  scratch.total = scratch.places + 3 * rows;
  return scratch;
}

template <class T>
std::int64_t scratch_elements(const ForwardPlan& plan) {
  return scratch_of<T>(plan).total;
}

template <class T>
struct Tile {
  const ForwardArguments& a;
  std::int64_t first, positions;
  T* panel;
  CornerBlock<T>* corners;  // [taps of a chunk][blocks of positions]
  Places<T> places;

  std::int64_t corner_blocks() const { return corner_rows(a.plan) / kCornerPositions; }
  void find(std::int64_t offset_group, std::int64_t tap, std::int64_t tap_end) const {
    for (std::int64_t t = tap; t < tap_end; ++t) {
      find_corners<T, false>(a.plan.shape, a.offset, a.mask, offset_group, t, first, positions,
                             corners + (t - tap) * corner_blocks(), places);
    }
  }
};

// Channels [channel, channel + count) of `taps` taps at all positions of the tile, into columns of the panel that are
// `tap_step` apart from tap to tap. Whole vectors are written: what lies beyond the last channel is overwritten
// by the columns that follow, or never looked at.
template <class T>
__attribute__((noinline)) void sample(const Tile<T>& tile, std::int64_t taps, std::int64_t channel, std::int64_t count, T* panel,
            std::int64_t tap_step) {
  constexpr int kN = kLanes<T>;
  const ForwardPlan& plan = tile.a.plan;
  const std::int64_t out_pixels = plan.shape.out_height * plan.shape.out_width;
  const std::int64_t pixel_stride = plan.pixel_stride, corner_blocks = tile.corner_blocks();
  const T* image = static_cast<const T*>(tile.a.pixels) + tile.first / out_pixels * plan.image_stride + channel;
  std::int64_t next_image = out_pixels - tile.first % out_pixels;
  for (std::int64_t p = 0; p < tile.positions; ++p) {
    if (p == next_image) {
      image += plan.image_stride;
      next_image += out_pixels;
    }
    const CornerBlock<T>* block = tile.corners + p / kCornerPositions;
    const std::int64_t lane = p % kCornerPositions;
    T* to = panel + p * plan.panel_stride;
    for (std::int64_t tap = 0; tap < taps; ++tap, block += corner_blocks, to += tap_step) {
      const T* from0 = image + block->index[0][lane] * pixel_stride;
      const T* from1 = image + block->index[1][lane] * pixel_stride;
      const T* from2 = image + block->index[2][lane] * pixel_stride;
      const T* from3 = image + block->index[3][lane] * pixel_stride;
      const Vector<T> w0 = splat(block->weight[0][lane]), w1 = splat(block->weight[1][lane]);
      const Vector<T> w2 = splat(block->weight[2][lane]), w3 = splat(block->weight[3][lane]);
      const auto one = [&](std::int64_t c) {
        store(to + c, w0 * load(from0 + c) + w1 * load(from1 + c) + (w2 * load(from2 + c) + w3 * load(from3 + c)));
      };
      std::int64_t c = 0;
      for (; c + 4 * kN <= count; c += 4 * kN) one(c), one(c + kN), one(c + 2 * kN), one(c + 3 * kN);
      for (; c < count; c += kN) one(c);
    }
  }
}

// The chunk of taps [tap, tap_end) and channels [channel, channel_end) of x. `found` is the offset group of which
// tile.corners holds these taps, or -1.
template <class T>
void fill_panel(const Tile<T>& tile, std::int64_t tap, std::int64_t tap_end, std::int64_t channel,
                std::int64_t channel_end, std::int64_t& found) {
  const DeformConv2dShape& s = tile.a.plan.shape;
  const std::int64_t offset_in = s.in_channels / s.offset_groups, width = channel_end - channel;
  const std::int64_t offset_group = channel / offset_in;
  if (channel_end <= (offset_group + 1) * offset_in) {
    if (found != offset_group) tile.find(offset_group, tap, tap_end);
    found = offset_group;
    sample(tile, tap_end - tap, channel, width, tile.panel, width);
    return;
  }
  // Several offset groups. Columns from left to right, since vectors reach beyond the last of a part.
  found = -1;
  T* panel = tile.panel;
  for (std::int64_t t = tap; t < tap_end; ++t) {
    for (std::int64_t c = channel; c < channel_end;) {
      const std::int64_t group = c / offset_in, count = smaller((group + 1) * offset_in, channel_end) - c;
      tile.find(group, t, t + 1);
      sample(tile, 1, c, count, panel, 0);
      panel += count;
      c += count;
    }
  }
}

template <class T>
void tile(const ForwardArguments& a, std::int64_t first, std::int64_t positions, void* memory) {
  const ForwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const Scratch scratch = scratch_of<T>(plan);
  T* const base = static_cast<T*>(memory);
  T* places = base + scratch.places;
  const std::int64_t rows = corner_rows(plan);
  const Tile<T> tile{a,
                     first,
                     positions,
                     base + scratch.panel,
                     reinterpret_cast<CornerBlock<T>*>(base + scratch.corners),
                     {places, places + rows, places + 2 * rows}};
  T* sums = base + scratch.sums;

  const std::int64_t taps = s.kernel_h * s.kernel_w;
  const std::int64_t group_in = s.in_channels / s.params.groups, group_out = s.out_channels / s.params.groups;
  const std::int64_t out_blocks = round_up(group_out, kColumns<T>) / kColumns<T>;
  for (std::int64_t group = 0; group < s.params.groups; ++group) {
    for (std::int64_t slab = 0; slab < group_out; slab += plan.slab) {
      const std::int64_t slab_end = smaller(slab + plan.slab, group_out);
      std::int64_t k = 0;
      for (std::int64_t tap = 0; tap < taps; tap += plan.chunk_taps) {
        const std::int64_t tap_end = smaller(tap + plan.chunk_taps, taps);
        std::int64_t found = -1;
        for (std::int64_t channel = 0; channel < group_in; channel += plan.chunk_channels) {
          const std::int64_t channel_end = smaller(channel + plan.chunk_channels, group_in);
          const std::int64_t depth = (tap_end - tap) * (channel_end - channel);
          fill_panel(tile, tap, tap_end, group * group_in + channel, group * group_in + channel_end, found);
          for (std::int64_t out = slab; out < slab_end; out += kColumns<T>) {
            const T* b = static_cast<const T*>(a.packed) +
                         ((group * out_blocks + out / kColumns<T>)*taps * group_in + k) * kColumns<T>;
            T* block_sums = sums + (out - slab) * plan.tile_rows;
            // The last rows may lie beyond the tile's positions: rows are independent, and those are never written out.
            for (std::int64_t row = 0; row < positions; row += kRows) {
              multiply_block<T, false>(tile.panel + row * plan.panel_stride, plan.panel_stride, b, kColumns<T>, depth,
                                       block_sums + row * kColumns<T>, kColumns<T>, k != 0);
            }
          }
          k += depth;
        }
      }
      for (std::int64_t out = slab; out < slab_end; out += kLanes<T>) {
        const std::int64_t block = (out - slab) / kColumns<T>, half = (out - slab) % kColumns<T>;
        write_channels(a, sums + block * kColumns<T> * plan.tile_rows + half, group * group_out + out,
                       smaller(kLanes<T>, slab_end - out), first, positions, base + scratch.staging,
                       staging_stride<T>(plan));
      }
    }
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
