// Forward: samples go straight into the left operand of a register-blocked matrix product, and the next ones are taken
// while it runs. For sources compiled by centermask_isa_sources only.
#pragma once

#include <cstdint>

#include "deform_conv2d/forward_layout.h"
#include "deform_conv2d/kernels.h"
#include "deform_conv2d/sampling.h"
#include "simd/vector.h"

namespace centermask::deform {
namespace {

// Bytes of scratch of one tile, in this order.
struct Scratch {
  std::int64_t panel, sums, staging, corners, places, total;
};

inline std::int64_t corner_rows(const ForwardPlan& plan) { return round_up(plan.tile_rows, kCornerPositions); }

template <class T>
std::int64_t staging_stride(const ForwardPlan& plan) {
  return round_up(plan.tile_rows, kLanes<T>) + kLanes<T>;
}

template <class T, class Product>
Scratch scratch_of(const ForwardPlan& plan) {
  constexpr std::int64_t kItem = sizeof(T);
  const std::int64_t rows = corner_rows(plan);
  const auto after = [](std::int64_t place, std::int64_t bytes) { return round_up(place + bytes, 64); };
  Scratch scratch;
  scratch.panel = 0;
  scratch.sums =
      after(0, plan.panels * kRows * plan.panel_stride * static_cast<std::int64_t>(sizeof(typename Product::Panel)));
  // Whole vectors of positions are read.
  scratch.staging = after(scratch.sums, (plan.tile_rows * plan.slab + kLanes<T> * kColumns<T>)*kItem);
  scratch.corners = after(scratch.staging, kLanes<T> * staging_stride<T>(plan) * kItem);
  scratch.places = after(
      scratch.corners, plan.chunk_taps * (rows / kCornerPositions) * static_cast<std::int64_t>(sizeof(CornerBlock<T>)));
  scratch.total = after(scratch.places, 3 * rows * kItem);
  return scratch;
}

template <class T, class Product>
std::int64_t scratch_bytes(const ForwardPlan& plan) {
  return scratch_of<T, Product>(plan).total;
}

template <class T>
struct Tile {
  const ForwardArguments& a;
  std::int64_t first, positions;
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

// Writes samples of channels [channel, channel + count) into a panel: one tap of one row (of the tile) at each step,
// rows in order, and within a row the taps that tile.corners holds, `tap_step` columns apart. Whole vectors are
// written: what lies beyond the last channel is overwritten by the columns that follow, or never looked at.
template <class T, class Product>
class Sampler {
 public:
  using Panel = typename Product::Panel;

  Sampler() = default;
  Sampler(const Tile<T>& tile, std::int64_t row, std::int64_t row_end, std::int64_t taps, std::int64_t channel,
          std::int64_t count, Panel* panel, std::int64_t tap_step)
      : pixel_stride_(tile.a.plan.pixel_stride),
        corner_blocks_(tile.corner_blocks()),
        tap_step_(tap_step),
        count_(count),
        taps_(taps),
        panel_stride_(tile.a.plan.panel_stride),
        image_stride_(tile.a.plan.image_stride),
        out_pixels_(tile.a.plan.shape.out_height * tile.a.plan.shape.out_width),
        corners_(tile.corners),
        panel_(panel),
        row_(row),
        row_end_(row_end) {
    const std::int64_t first = tile.first + row;
    const std::int64_t image = first / out_pixels_ - tile.a.first_image;
    image_ = static_cast<const T*>(tile.a.pixels) + image * image_stride_ + channel;
    next_image_ = row + out_pixels_ - first % out_pixels_;
    start_row();
  }

  std::int64_t steps() const { return (row_end_ - row_) * taps_; }
  void spread_over(std::int64_t depth) {
    const std::int64_t count = steps();
    every_ = count == 0 ? depth : depth / count > 1 ? depth / count : 1;
  }
  std::int64_t until(std::int64_t d, std::int64_t depth) const { return d + every_ < depth ? d + every_ : depth; }

  inline __attribute__((always_inline)) void step() {
    if (row_ == row_end_) return;
    constexpr int kN = kLanes<T>;
    const T* from0 = image_ + block_->index[0][lane_] * pixel_stride_;
    const T* from1 = image_ + block_->index[1][lane_] * pixel_stride_;
    const T* from2 = image_ + block_->index[2][lane_] * pixel_stride_;
    const T* from3 = image_ + block_->index[3][lane_] * pixel_stride_;
    const Vector<T> w0 = splat(block_->weight[0][lane_]), w1 = splat(block_->weight[1][lane_]);
    const Vector<T> w2 = splat(block_->weight[2][lane_]), w3 = splat(block_->weight[3][lane_]);
    Panel* const to = to_;
    for (std::int64_t c = 0; c < count_; c += kN) {
      Product::put(to + c, w0 * load(from0 + c) + w1 * load(from1 + c) + (w2 * load(from2 + c) + w3 * load(from3 + c)));
    }
    to_ += tap_step_;
    block_ += corner_blocks_;
    if (++tap_ == taps_) {
      ++row_;
      panel_ += panel_stride_;
      start_row();
    }
  }

  void finish() {
    while (row_ < row_end_) step();
  }

 private:
  void start_row() {
    if (row_ == next_image_) {
      image_ += image_stride_;
      next_image_ += out_pixels_;
    }
    tap_ = 0;
    to_ = panel_;
    lane_ = row_ % kCornerPositions;
    block_ = corners_ + row_ / kCornerPositions;
  }

  std::int64_t pixel_stride_ = 0, corner_blocks_ = 0, tap_step_ = 0, count_ = 0, taps_ = 0, panel_stride_ = 0;
  std::int64_t image_stride_ = 0, out_pixels_ = 0, every_ = 0;
  const CornerBlock<T>* corners_ = nullptr;
  const CornerBlock<T>* block_ = nullptr;
  const T* image_ = nullptr;
  Panel* panel_ = nullptr;
  Panel* to_ = nullptr;
  std::int64_t row_ = 0, row_end_ = 0, next_image_ = 0, tap_ = 0, lane_ = 0;
};

// A chunk of a group's columns: taps [tap, tap_end) of channels [channel, channel_end) of x; `found` says that
// tile.corners holds them.
struct Chunk {
  std::int64_t tap, tap_end, channel, channel_end;
  bool found;
  std::int64_t depth() const { return (tap_end - tap) * (channel_end - channel); }
};

template <class T, class Product>
Sampler<T, Product> sampler_of(const Tile<T>& tile, const Chunk& chunk, std::int64_t row,
                               typename Product::Panel* panel) {
  const std::int64_t width = chunk.channel_end - chunk.channel;
  return Sampler<T, Product>(tile, row, smaller(row + kRows, tile.positions), chunk.tap_end - chunk.tap, chunk.channel,
                             width, panel, width);
}

// Rows [row, row + rows) of a chunk that belongs to several offset groups. Columns from left to right, since vectors
// reach beyond the last of a part.
template <class T, class Product>
void fill_mixed_panel(const Tile<T>& tile, const Chunk& chunk, std::int64_t row, std::int64_t rows,
                      typename Product::Panel* panel) {
  const DeformConv2dShape& s = tile.a.plan.shape;
  const std::int64_t offset_in = s.in_channels / s.offset_groups;
  const Tile<T> part{tile.a, tile.first + row, rows, tile.corners, tile.places};
  for (std::int64_t t = chunk.tap; t < chunk.tap_end; ++t) {
    for (std::int64_t c = chunk.channel; c < chunk.channel_end;) {
      const std::int64_t group = c / offset_in, count = smaller((group + 1) * offset_in, chunk.channel_end) - c;
      part.find(group, t, t + 1);
      Sampler<T, Product>(part, 0, rows, 1, c, count, panel, 0).finish();
      panel += count;
      c += count;
    }
  }
}

// Weights of a chunk: the first of `blocks` blocks of out channels, and the step from one to the next.
template <class Panel>
struct ChunkWeights {
  const Panel* first;
  std::int64_t step, blocks;
};

// Adds to the sums of rows [row, row + kRows) of the tile. Its last rows may lie beyond the tile's positions: rows are
// independent, and those are never written out.
template <class T, class Product>
void multiply_rows(const Tile<T>& tile, const Chunk& chunk, const ChunkWeights<typename Product::Panel>& b,
                   const typename Product::Panel* panel, std::int64_t row, bool accumulate, T* sums,
                   Sampler<T, Product>& beside) {
  const ForwardPlan& plan = tile.a.plan;
  beside.spread_over(chunk.depth() * b.blocks);
  for (std::int64_t block = 0; block < b.blocks; ++block) {
    Product::multiply(panel, plan.panel_stride, b.first + block * b.step, chunk.depth(),
                      sums + (block * plan.tile_rows + row) * kColumns<T>, accumulate, beside);
  }
  beside.finish();
}

// All rows of the tile times one chunk's weights.
template <class T, class Product>
void multiply_chunk(const Tile<T>& tile, const Chunk& chunk, const ChunkWeights<typename Product::Panel>& b,
                    bool accumulate, typename Product::Panel* panel, T* sums) {
  using Panel = typename Product::Panel;
  const ForwardPlan& plan = tile.a.plan;
  const std::int64_t panel_size = kRows * plan.panel_stride;
  Sampler<T, Product> nothing;
  if (!chunk.found) {
    const std::int64_t many = plan.panels * kRows;
    for (std::int64_t row = 0; row < tile.positions; row += many) {
      const std::int64_t rows = smaller(many, tile.positions - row);
      fill_mixed_panel<T, Product>(tile, chunk, row, rows, panel);
      for (std::int64_t r = 0; r < rows; r += kRows) {
        multiply_rows<T, Product>(tile, chunk, b, panel + r * plan.panel_stride, row + r, accumulate, sums, nothing);
      }
    }
    return;
  }
  Panel* now = panel;
  Panel* then = panel + panel_size;
  sampler_of<T, Product>(tile, chunk, 0, now).finish();
  for (std::int64_t row = 0; row < tile.positions; row += kRows) {
    Sampler<T, Product> next;
    if (row + kRows < tile.positions) next = sampler_of<T, Product>(tile, chunk, row + kRows, then);
    // With 16 registers, the sums would have to leave them for each sample; and a short product is not to be cut
    // further.
    if (kRegisters < 32 || chunk.depth() * b.blocks < 4 * next.steps()) next.finish();
    multiply_rows<T, Product>(tile, chunk, b, now, row, accumulate, sums, next);
    Panel* const last = now;
    now = then, then = last;
  }
}

template <class T, class Product>
void tile(const ForwardArguments& a, std::int64_t first, std::int64_t positions, void* memory) {
  using Panel = typename Product::Panel;
  const ForwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const Scratch scratch = scratch_of<T, Product>(plan);
  const auto at = [=](std::int64_t place) { return reinterpret_cast<T*>(static_cast<char*>(memory) + place); };
  const std::int64_t rows = corner_rows(plan);
  T* places = at(scratch.places);
  const Tile<T> tile{a,
                     first,
                     positions,
                     reinterpret_cast<CornerBlock<T>*>(at(scratch.corners)),
                     {places, places + rows, places + 2 * rows}};
  T* sums = at(scratch.sums);

  const std::int64_t taps = s.kernel_h * s.kernel_w, offset_in = s.in_channels / s.offset_groups;
  const std::int64_t group_in = s.in_channels / s.params.groups, group_out = s.out_channels / s.params.groups;
  const std::int64_t b_step = taps * group_in * kColumns<T>,
                     out_blocks = round_up(group_out, kColumns<T>) / kColumns<T>;
  for (std::int64_t group = 0; group < s.params.groups; ++group) {
    for (std::int64_t slab = 0; slab < group_out; slab += plan.slab) {
      const std::int64_t slab_end = smaller(slab + plan.slab, group_out);
      const Panel* b = static_cast<const Panel*>(a.packed) + (group * out_blocks + slab / kColumns<T>)*b_step;
      bool accumulate = false;
      for (std::int64_t tap = 0; tap < taps; tap += plan.chunk_taps) {
        std::int64_t found = -1;  // the offset group of which tile.corners holds these taps
        for (std::int64_t channel = 0; channel < group_in; channel += plan.chunk_channels) {
          const std::int64_t x_channel = group * group_in + channel, offset_group = x_channel / offset_in;
          Chunk chunk{tap, smaller(tap + plan.chunk_taps, taps), x_channel,
                      x_channel + smaller(plan.chunk_channels, group_in - channel), false};
          chunk.found = chunk.channel_end <= (offset_group + 1) * offset_in;
          if (chunk.found && found != offset_group) tile.find(offset_group, tap, chunk.tap_end);
          found = chunk.found ? offset_group : -1;
          const ChunkWeights<Panel> weights{b, b_step, round_up(slab_end - slab, kColumns<T>) / kColumns<T>};
          multiply_chunk<T, Product>(tile, chunk, weights, accumulate, reinterpret_cast<Panel*>(at(scratch.panel)),
                                     sums);
          b += chunk.depth() * kColumns<T>;
          accumulate = true;
        }
      }
      for (std::int64_t out = slab; out < slab_end; out += kLanes<T>) {
        const std::int64_t block = (out - slab) / kColumns<T>, half = (out - slab) % kColumns<T>;
        write_channels(a, sums + block * kColumns<T> * plan.tile_rows + half, group * group_out + out,
                       smaller(kLanes<T>, slab_end - out), first, positions, at(scratch.staging),
                       staging_stride<T>(plan));
      }
    }
  }
}

template <class T, class Product>
constexpr ForwardKernels forward_kernels() {
  return {{kLanes<T>, kRows, kColumns<T>}, static_cast<std::int64_t>(sizeof(typename Product::Panel)),
          pack_weight<T, Product>,         copy_rows<T>,
          scratch_bytes<T, Product>,       tile<T, Product>};
}

}  // namespace
}  // namespace centermask::deform
