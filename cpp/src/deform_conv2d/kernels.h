// What the driver (deform_conv2d_cpu.cc, backward_cpu.cc: compiled once) and the kernels (forward_kernels.cc,
// backward_kernels.cc: compiled for each instruction set) say to each other. Plain data and function pointers only.
#pragma once

#include <cstdint>

#include "centermask/deform_conv2d.h"
#include "centermask/isa.h"

namespace centermask::deform {

// Sizes of the register block and of vectors, in elements.
struct BlockSizes {
  std::int64_t lanes, rows, columns;
};

// ---- forward ----
// Output positions are numbered through the whole batch, n*Ho*Wo + oy*Wo + ox. A tile is `tile_rows` of them.
// The columns of a group, taps x channels, come in chunks of some taps of some channels, ordered by
// [group of taps][run of channels][tap][channel]: few channels of all taps, so that what a position samples is still in
// the L1 cache from its neighbours. A chunk's samples at the positions of one register block are a panel.
struct ForwardPlan {
  DeformConv2dShape shape;
  std::int64_t pixel_stride;    // of the channels-last copy, in elements
  std::int64_t image_stride;    // one zero pixel, then H*W pixels
  std::int64_t images_at_once;  // of which the copy is held
  std::int64_t chunk_taps;      // of a chunk; the last chunks may have fewer
  std::int64_t chunk_channels;  // likewise
  std::int64_t panels;          // of one register block's rows
  std::int64_t panel_stride;    // in the panel's elements
  std::int64_t tile_rows;       // a multiple of the register block's rows
  std::int64_t slab;  // out channels whose sums are kept at a time, a multiple of the register block's columns
};

struct ForwardArguments {
  ForwardPlan plan;
  TensorView x, weight, offset, mask, bias, output;
  std::int64_t first_image;  // of those at hand
  void* pixels;              // their channels-last copy
  const void* packed;  // [group][out block][kh*kw*C/groups in the order of chunks][columns]; bf16: see its kernels
};

struct ForwardKernels {
  BlockSizes block;
  std::int64_t panel_item;  // bytes of an element of the panel, and of packed weights
  // Packs out channels [block*columns, ...) of a group: one block of `packed`.
  void (*pack_weight)(const ForwardPlan& plan, const TensorView& weight, std::int64_t group, std::int64_t block,
                      void* packed);
  // Rows [row, row_end) of image n of x into the channels-last copy (and the zero pixel, with row 0).
  void (*copy_rows)(const ForwardArguments& arguments, std::int64_t n, std::int64_t row, std::int64_t row_end);
  std::int64_t (*scratch_bytes)(const ForwardPlan& plan);
  // Output positions [first, first + count), count <= tile_rows.
  void (*tile)(const ForwardArguments& arguments, std::int64_t first, std::int64_t count, void* scratch);
};

// ---- backward ----
// The work is divided by blocks of input channels (each within one group and one offset group) and by chunks of the
// batch: a task alone owns its part of grad_x, and its own copy of its part of grad_weight, so that nothing is shared.
// Channels of a block are padded to whole vectors: `width`.
struct ChannelBlock {
  std::int64_t channel, channels;  // of x
  std::int64_t group, offset_group;
};

struct BackwardPlan {
  DeformConv2dShape shape;
  std::int64_t block_count;
  std::int64_t width;         // padded channels of a block
  std::int64_t image_stride;  // elements of one image of one block: a zero pixel, then H*W pixels of `width`
  std::int64_t chunk_count;   // parts of the batch
  std::int64_t chunk_images;
  std::int64_t taps_at_once;  // taps whose columns are in the panel together
  std::int64_t columns;       // of one group of taps, padded to the register block in both directions
  std::int64_t panel_stride;
  std::int64_t tile_rows;
  std::int64_t grad_stride;               // of one position in the position-major copy of grad_output
  std::int64_t grad_rows;                 // positions in it, with slack for whole register blocks
  std::int64_t out_blocks;                // of `columns` of the register block in a group's out channels
  bool need_x, need_weight, need_places;  // places: offset or mask
};

struct BackwardArguments {
  BackwardPlan plan;
  TensorView grad_output, x, weight, offset, mask;
  DeformConv2dGradients gradients;
  const ChannelBlock* blocks;
  void* pixels;       // [block][N][image_stride]
  void* grad_pixels;  // the same
  void* grad_rows;    // grad_output: [group][grad_rows][grad_stride]
  void* packed;       // [block][group of taps][columns / block columns][out channels of a group][block columns]
  void* grad_packed;  // [chunk][block][group of taps][out block][columns][block columns]
  void* places;       // [block][tap][dy, dx, mask][N*Ho*Wo]
};

struct BackwardKernels {
  BlockSizes block;
  void (*copy_pixels)(const BackwardArguments& arguments, std::int64_t block, std::int64_t n);
  void (*copy_grad_rows)(const BackwardArguments& arguments, std::int64_t group, std::int64_t n);
  void (*pack_weight)(const BackwardArguments& arguments, std::int64_t block);
  std::int64_t (*scratch_elements)(const BackwardPlan& plan);
  void (*task)(const BackwardArguments& arguments, std::int64_t block, std::int64_t chunk, void* scratch);
  void (*finish_x)(const BackwardArguments& arguments, std::int64_t block, std::int64_t n);
  void (*finish_weight)(const BackwardArguments& arguments, std::int64_t block);
  void (*finish_places)(const BackwardArguments& arguments, std::int64_t n, std::int64_t offset_group,
                        std::int64_t tap);
  void (*finish_bias)(const BackwardArguments& arguments, std::int64_t group, std::int64_t out_block);
};

// One per instruction set; [0] is float, [1] is double.
extern const ForwardKernels forward_kernels_baseline[2];
extern const ForwardKernels forward_kernels_avx2[2];
extern const ForwardKernels forward_kernels_avx512[2];
extern const ForwardKernels forward_kernels_avx512bf16[1];  // float, products in bfloat16
extern const BackwardKernels backward_kernels_baseline[2];
extern const BackwardKernels backward_kernels_avx2[2];
extern const BackwardKernels backward_kernels_avx512[2];

}  // namespace centermask::deform
