// Backward on the CPU: divides the work, runs the kernels of the instruction set in use.
#include <vector>

#include "deform_conv2d/backward_check.h"
#include "deform_conv2d/driver.h"
#include "deform_conv2d/kernels.h"

namespace centermask {

namespace deform {
namespace {

const BackwardKernels& kernels_for(Isa isa, DType dtype) {
  const int which = dtype == DType::kFloat64 ? 1 : 0;
  switch (isa) {
#if defined(CENTERMASK_HAVE_AVX512)
    case Isa::kAvx512: return backward_kernels_avx512[which];
#endif
#if defined(CENTERMASK_HAVE_AVX2)
    case Isa::kAvx2: return backward_kernels_avx2[which];
#endif
    default: return backward_kernels_baseline[which];
  }
}

// Channels of x that share group and offset group come in runs of this length.
std::int64_t run_length(const DeformConv2dShape& s) {
  std::int64_t a = s.in_channels / s.params.groups, b = s.in_channels / s.offset_groups;
  // Both divide C, so boundaries fall on multiples of the greatest common divisor.
  while (b != 0) {
    const std::int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

std::vector<ChannelBlock> make_blocks(const DeformConv2dShape& s, std::int64_t width) {
  std::vector<ChannelBlock> blocks;
  const std::int64_t run = run_length(s);
  for (std::int64_t channel = 0; channel < s.in_channels;) {
    const std::int64_t run_end = (channel / run + 1) * run;
    ChannelBlock block{};
    block.channel = channel;
    block.channels = channel + width < run_end ? width : run_end - channel;
    block.group = channel / (s.in_channels / s.params.groups);
    block.offset_group = channel / (s.in_channels / s.offset_groups);
    blocks.push_back(block);
    channel += block.channels;
  }
  return blocks;
}

BackwardPlan make_plan(const DeformConv2dShape& s, const BlockSizes& block, int threads) {
  BackwardPlan plan{};
  plan.shape = s;
  const std::int64_t run = run_length(s), runs = s.in_channels / run;

  // Width of a channel block and number of chunks: the least work for the busiest thread. What a tap costs beside its
  // channels (finding corners, adding up) counts as some 12 channels more; each chunk costs a copy of grad_weight.
  const std::int64_t step = align_up(block.lanes, 64 / dtype_size(s.dtype));
  std::int64_t best_cost = 0;
  for (std::int64_t width = step; width <= 64 && (width < run + step); width += step) {
    for (std::int64_t chunks = 1; chunks <= threads && chunks <= s.batch; ++chunks) {
      const std::int64_t tasks = runs * divide_up(run, width) * chunks;
      const std::int64_t images = divide_up(s.batch, chunks);
      const std::int64_t cost = divide_up(tasks, threads) * (width + 12) * images * 64 + chunks;
      if (best_cost != 0 && cost >= best_cost) continue;
      best_cost = cost;
      plan.width = width;
      plan.chunk_count = divide_up(s.batch, images);
      plan.chunk_images = images;
    }
  }
  plan.block_count = runs * divide_up(run, plan.width);
  plan.image_stride = (1 + s.height * s.width) * plan.width;

  const std::int64_t most = 2560 / dtype_size(s.dtype);
  plan.taps_at_once = most / plan.width < 1 ? 1 : most / plan.width;
  if (plan.taps_at_once > s.taps()) plan.taps_at_once = s.taps();
  plan.taps_at_once = divide_up(s.taps(), divide_up(s.taps(), plan.taps_at_once));
  plan.columns = align_up(align_up(plan.taps_at_once * plan.width, block.rows), block.columns);
  const std::int64_t line = 64 / dtype_size(s.dtype);
  // An odd number of cache lines, so that rows spread over the sets of the caches.
  plan.panel_stride = align_up(plan.columns, line);
  if (plan.panel_stride / line % 2 == 0) plan.panel_stride += line;
  plan.tile_rows = align_up(96, block.rows);

  const std::int64_t group_out = s.out_channels / s.params.groups;
  plan.out_blocks = divide_up(group_out, block.columns);
  plan.grad_stride = align_up(plan.out_blocks * block.columns, line);
  if (plan.grad_stride / line % 2 == 0) plan.grad_stride += line;
  plan.grad_rows = s.batch * s.out_pixels() + block.rows;
  return plan;
}

struct Memory {
  void* scratch;
  std::int64_t scratch_bytes;  // of one thread
};

std::size_t lay_out(Layout layout, const BackwardKernels& kernels, int threads, BackwardArguments& a, Memory& memory) {
  const BackwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const std::int64_t item = dtype_size(s.dtype), group_out = s.out_channels / s.params.groups;
  const std::int64_t tap_groups = divide_up(s.taps(), plan.taps_at_once);
  const std::int64_t pixels = plan.block_count * s.batch * plan.image_stride;
  a.pixels = layout.take(pixels * item);
  a.grad_pixels = layout.take(pixels * item);
  a.grad_rows = layout.take(s.params.groups * plan.grad_rows * plan.grad_stride * item);
  a.packed = layout.take(plan.block_count * tap_groups * plan.columns * group_out * item);
  a.grad_packed = layout.take(plan.chunk_count * plan.block_count * tap_groups * plan.out_blocks * plan.columns *
                              kernels.block.columns * item);
  a.places = layout.take(plan.block_count * s.taps() * 3 * s.batch * s.out_pixels() * item);
  memory.scratch_bytes = align_up(kernels.scratch_elements(plan) * item, 64) + 64;
  memory.scratch = layout.take(memory.scratch_bytes * threads);
  return layout.bytes();
}

void zero(const TensorView& view) {
  if (!view.present()) return;
  char* bytes = view.ptr<char>();
  for (std::int64_t i = 0; i < view.size() * dtype_size(view.dtype); ++i) bytes[i] = 0;
}

void check_arguments(const DeformConv2dShape& s, const TensorView& grad_output, const TensorView& x,
                     const TensorView& weight, const TensorView& offset, const TensorView& mask,
                     const DeformConv2dGradients& gradients) {
  check_cpu(x, "x");
  if (s.dtype != DType::kFloat32 && s.dtype != DType::kFloat64) {
    fail(ErrorKind::kType, "deform_conv2d: x must be float32 or float64 on the CPU, got ", dtype_name(s.dtype));
  }
  check_backward_arguments(s, grad_output, x, weight, offset, mask, gradients);
}

}  // namespace
}  // namespace deform

using namespace deform;

std::size_t deform_conv2d_backward_workspace_cpu(const DeformConv2dShape& shape, int threads) {
  if (shape.batch == 0) return 0;  // nothing to plan
  const BackwardKernels& kernels = kernels_for(isa_used(), shape.dtype);
  BackwardArguments arguments{};
  arguments.plan = make_plan(shape, kernels.block, threads);
  Memory memory;
  return lay_out(Layout(), kernels, threads, arguments, memory);
}

void deform_conv2d_backward_cpu(const TensorView& grad_output, const TensorView& x, const TensorView& weight,
                                const TensorView& offset, const TensorView& mask, const DeformConv2dParams& params,
                                const Workspace& workspace, const DeformConv2dGradients& gradients,
                                const ParallelFor& parallel_for) {
  const DeformConv2dShape s = deform_conv2d_shape(x, weight, offset, mask, {}, params);
  check_arguments(s, grad_output, x, weight, offset, mask, gradients);
  if (s.batch == 0) {
    zero(gradients.weight);
    zero(gradients.bias);
    return;
  }

  const BackwardKernels& kernels = kernels_for(isa_used(), s.dtype);
  BackwardArguments a{};
  a.plan = make_plan(s, kernels.block, parallel_for.threads);
  a.grad_output = grad_output, a.x = x, a.weight = weight, a.offset = offset, a.mask = mask;
  a.gradients = gradients;
  Memory memory;
  check_workspace(workspace, lay_out(Layout(), kernels, parallel_for.threads, a, memory));
  lay_out(Layout(workspace.data), kernels, parallel_for.threads, a, memory);
  const std::vector<ChannelBlock> blocks = make_blocks(s, a.plan.width);
  a.blocks = blocks.data();
  a.plan.need_x = gradients.x.present();
  a.plan.need_weight = gradients.weight.present();
  a.plan.need_places = gradients.offset.present() || gradients.mask.present();

  const std::int64_t block_count = a.plan.block_count, groups = s.params.groups;
  const bool need_columns = a.plan.need_x || a.plan.need_weight || a.plan.need_places;
  parallel_for(groups * s.batch, [&](std::int64_t i) { kernels.copy_grad_rows(a, i / s.batch, i % s.batch); });
  if (gradients.bias.present()) {
    parallel_for(groups * a.plan.out_blocks,
                 [&](std::int64_t i) { kernels.finish_bias(a, i / a.plan.out_blocks, i % a.plan.out_blocks); });
  }
  if (!need_columns) return;
  parallel_for(block_count * (s.batch + 1), [&](std::int64_t i) {
    if (i < block_count) {
      kernels.pack_weight(a, i);
    } else {
      kernels.copy_pixels(a, (i - block_count) / s.batch, (i - block_count) % s.batch);
    }
  });
  for_each_with_slot(parallel_for, block_count * a.plan.chunk_count, [&](std::int64_t i, std::int64_t slot) {
    kernels.task(a, i / a.plan.chunk_count, i % a.plan.chunk_count,
                 static_cast<char*>(memory.scratch) + slot * memory.scratch_bytes);
  });
  if (a.plan.need_x) {
    parallel_for(block_count * s.batch, [&](std::int64_t i) { kernels.finish_x(a, i / s.batch, i % s.batch); });
  }
  if (a.plan.need_weight) {
    parallel_for(block_count, [&](std::int64_t i) { kernels.finish_weight(a, i); });
  }
  if (a.plan.need_places) {
    const std::int64_t per_image = s.offset_groups * s.taps();
    parallel_for(s.batch * per_image, [&](std::int64_t i) {
      kernels.finish_places(a, i / per_image, i % per_image / s.taps(), i % s.taps());
    });
  }
}

}  // namespace centermask
