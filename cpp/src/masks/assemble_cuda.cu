// Run lengths in three launches. The masks' columns are walked twice, once to count and once to write, since evaluating
// the few cells of a box again is cheaper than keeping fields or positions, and needs memory for neither:
//   1. count_runs: per instance and strip of pixel columns, how often the mask begins or ends, and where it last does
//   2. sum_runs:   the offsets, and the last run of each mask
//   3. write_runs: all the others
#include <cstdint>

#include "centermask/error.h"
#include "centermask/masks.h"
#include "cuda/runtime.h"
#include "masks/check.h"
#include "masks/strips.cuh"

namespace centermask {

namespace {

using masks::device::Changes;
using masks::device::Column;
using masks::device::Columns;
using masks::device::kAllLanes;
using masks::device::kStrip;
using masks::device::kThreads;
using masks::device::Problem;
using masks::device::Record;
using masks::device::scan_block;
using masks::device::Scratch;
using masks::device::Strip;
using masks::device::Window;

constexpr const char* kOp = "assemble_masks";
constexpr int kBlocks = 5;  // on a multiprocessor; that many registers may be used
constexpr int kSumThreads = 1024;
constexpr int kSumLanes = 8;  // that add up one instance
constexpr int kSumInstances = kSumThreads / kSumLanes;

template <MaskHead kHead>
__global__ void __launch_bounds__(kThreads, kBlocks)
    count_runs(const Problem problem, unsigned strips, std::uint32_t pixels, Record* records) {
  __shared__ Scratch scratch;
  const unsigned instance = blockIdx.x / strips;
  Columns<kHead> columns(problem, instance, scratch);
  Strip<kHead> strip(columns, blockIdx.x - instance * strips, problem.y.pixels, pixels);
  Changes total = {0, 0};
  if (strip.exists()) total = scan_block(strip.count()).total;
  if (threadIdx.x == 0) records[blockIdx.x] = {total.count, total.last};
}

// One block. ends: [instances], the last change of each.
__global__ void __launch_bounds__(kSumThreads)
    sum_runs(const Record* records, std::int64_t strips, std::int64_t instances, std::uint32_t pixels,
             std::uint32_t* ends, std::uint32_t* runs, std::int64_t capacity, std::int64_t* offsets) {
  static_assert(kSumInstances == 128, "four warps scan the instances' sums");
  __shared__ std::int64_t sums[kSumInstances];
  __shared__ std::int64_t warps[kSumInstances / 32];
  const int group = static_cast<int>(threadIdx.x) / kSumLanes, lane = static_cast<int>(threadIdx.x) % kSumLanes;
  std::int64_t before = 0;  // the runs of the instances of earlier rounds
  if (threadIdx.x == 0) offsets[0] = 0;
  for (std::int64_t first = 0; first < instances; first += kSumInstances) {
    const std::int64_t instance = first + group;
    std::int64_t sum = 0;
    std::uint32_t last = 0;
    if (instance < instances) {
      for (std::int64_t strip = lane; strip < strips; strip += kSumLanes) {
        const Record record = records[instance * strips + strip];
        sum += record.count;
        if (record.last > last) last = record.last;
      }
    }
    for (int step = kSumLanes / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, step);
      const std::uint32_t other = __shfl_xor_sync(kAllLanes, last, step);
      if (other > last) last = other;
    }
    if (lane == 0) {
      sums[group] = instance < instances ? sum + 1 : 0;  // the last run follows the last change
      if (instance < instances) ends[instance] = last;
    }
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    std::int64_t total = 0;
    if (threadIdx.x < kSumInstances) {
      total = sums[threadIdx.x];
      for (unsigned step = 1; step < 32; step *= 2) {
        const std::int64_t other = __shfl_up_sync(kAllLanes, total, step);
        if (threadIdx.x % 32 >= step) total += other;
      }
      if (threadIdx.x % 32 == 31) warps[warp] = total;
    }
    __syncthreads();
    std::int64_t all = 0;
    for (int i = 0; i < kSumInstances / 32; ++i) {
      if (i < warp) total += warps[i];
      all += warps[i];
    }
    if (threadIdx.x < kSumInstances && first + threadIdx.x < instances) {
      offsets[first + threadIdx.x + 1] = before + total;
    }
    before += all;
    __syncthreads();
  }
  if (before > capacity) return;
  for (std::int64_t i = threadIdx.x; i < instances; i += kSumThreads) runs[offsets[i + 1] - 1] = pixels - ends[i];
}

template <MaskHead kHead>
__global__ void __launch_bounds__(kThreads, kBlocks)
    write_runs(const Problem problem, unsigned strips, std::int64_t instances, std::uint32_t pixels,
               const Record* records, const std::int64_t* offsets, std::uint32_t* runs, std::int64_t capacity) {
  __shared__ Scratch scratch;
  const unsigned instance = blockIdx.x / strips, index = blockIdx.x - instance * strips;
  const std::uint32_t count = records[blockIdx.x].count;
  if (count == 0 || offsets[instances] > capacity) return;
  Changes earlier = {0, 0};  // of the strips before, shared out among the threads
  for (unsigned i = threadIdx.x; i < index; i += kThreads) {
    const Record record = records[blockIdx.x - index + i];
    earlier = together(earlier, {record.count, record.last});
  }
  earlier = scan_block(earlier).total;
  Columns<kHead> columns(problem, instance, scratch);
  Strip<kHead> strip(columns, index, problem.y.pixels, pixels);
  if (!strip.exists()) return;
  const Changes before = together(earlier, scan_block(strip.count()).before);
  const std::int64_t begin = offsets[instance];
  strip.write(runs, begin + before.count, begin + earlier.count + count, before.last);
}

// bitmaps hold zeros; this writes the words of 32 pixels that lie in the windows.
template <MaskHead kHead>
__global__ void __launch_bounds__(kThreads, kBlocks)
    write_bits(const Problem problem, unsigned strips, std::uint8_t* bitmaps) {
  __shared__ Scratch scratch;
  const unsigned instance = blockIdx.x / strips, index = blockIdx.x - instance * strips;
  Columns<kHead> columns(problem, instance, scratch);
  const Window& window = columns.window();
  if (window.empty()) return;
  const std::int64_t x = window.x_begin / 32 * 32 + std::int64_t{index} * kThreads, end = x + kThreads;
  if (x >= window.x_end) return;
  const Column column =
      columns.begin(x, x > window.x_begin ? x : window.x_begin, end < window.x_end ? end : window.x_end);

  const std::int64_t row_bytes = (problem.x.pixels + 7) / 8;
  const unsigned lane = threadIdx.x % 32;
  const std::int64_t first_byte = (x + threadIdx.x - lane) / 8;
  const auto bytes = static_cast<int>(row_bytes - first_byte < 4 ? row_bytes - first_byte : 4);
  std::uint8_t* words = bitmaps + instance * problem.y.pixels * row_bytes + first_byte;
  const bool aligned = reinterpret_cast<std::uintptr_t>(words) % 4 == 0 && row_bytes % 4 == 0 && bytes == 4;

  // Lane k keeps the word of each row y with y % 32 == k, and all lanes write when the last of them is there.
  std::uint32_t word = 0;
  const auto flush = [&](std::int64_t row) {
    if (word == 0) return;
    std::uint8_t* to = words + row * row_bytes;
    if (aligned) {
      *reinterpret_cast<std::uint32_t*>(to) = word;
    } else {
      for (int i = 0; i < bytes; ++i) to[i] = static_cast<std::uint8_t>(word >> 8 * i);
    }
    word = 0;
  };
  const auto rows = [&](std::uint32_t low, std::uint32_t high, bool from, bool to, std::uint32_t at) {
#pragma unroll 1
    for (std::uint32_t y = low; y < high; ++y) {
      const std::uint32_t bits = __ballot_sync(kAllLanes, y < at ? from : to);
      if (lane == y % 32) word = bits;
      if (y % 32 == 31) flush(static_cast<std::int64_t>(y) - 31 + lane);
    }
  };
  for (std::int64_t first = 0;; first = columns.next_tile()) {
    columns.load_tile(first);
    float upper = columns.value(column, 0);
#pragma unroll 1
    for (int row = 0; row + 1 < columns.tile_rows(); ++row) {
      const float lower = columns.value(column, row + 1);
      const std::uint32_t low = columns.row_pixel(row), high = columns.row_pixel(row + 1);
      if (low < high) {
        const auto gap = columns.gap(column, row, upper, lower, low, high);
        rows(low, high, column.valid && gap.from, column.valid && gap.to, gap.at);
      }
      upper = lower;
    }
    if (columns.last_tile()) {
      const auto high = static_cast<std::uint32_t>(window.y_end);
      const bool inside = column.valid && upper >= 0.0f;
      rows(columns.row_pixel(columns.tile_rows() - 1), high, inside, inside, high);
      break;
    }
  }
  if (window.y_end % 32 != 0) flush(window.y_end / 32 * 32 + lane);
}

Problem problem_of(const AssembleMasksParams& params, const AssembleMasksInputs& inputs) {
  const TensorView &features = inputs.mask_features, &mask_params = inputs.mask_params;
  Problem problem{};
  problem.features = features.data;
  problem.params = mask_params.data;
  problem.boxes = inputs.boxes.ptr<const float>();
  problem.features_type = features.dtype;
  problem.params_type = mask_params.dtype;
  for (int i = 0; i < 3; ++i) problem.features_stride[i] = features.stride[i];
  for (int i = 0; i < 2; ++i) {
    problem.params_stride[i] = mask_params.stride[i];
    problem.boxes_stride[i] = inputs.boxes.stride[i];
  }
  problem.channels = 1;
  if (params.head == MaskHead::kShape && features.shape[0] > 1) {
    problem.channels = features.shape[0];
    problem.labels = inputs.labels.ptr<const std::int64_t>();
    problem.labels_stride = inputs.labels.stride[0];
  }
  problem.x = masks::device::device_axis(masks::x_axis(params, features.shape[2]));
  problem.y = masks::device::device_axis(masks::y_axis(params, features.shape[1]));
  problem.margin = params.box_margin;
  problem.threshold = static_cast<float>(params.threshold);
  problem.threshold_rest = static_cast<float>(params.threshold - static_cast<double>(problem.threshold));
  return problem;
}

std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::size_t records_bytes(std::int64_t instances, std::int64_t strips) {
  return static_cast<std::size_t>(instances) * static_cast<std::size_t>(strips) * sizeof(Record);
}

unsigned grid_of(const TensorView& features, std::int64_t instances, std::int64_t strips) {
  constexpr std::int64_t kMax = 2147483647;
  if (features.shape[1] > kMax || features.shape[2] > kMax) {
    fail(ErrorKind::kUnsupported, kOp, ": mask_features must have at most ", kMax, " rows and columns, got ",
         shape_text(features));
  }
  if (instances > kMax / strips) {
    fail(ErrorKind::kUnsupported, kOp, ": too many instances for an image of this width: ", instances);
  }
  return static_cast<unsigned>(instances * strips);
}

}  // namespace

std::size_t assemble_masks_workspace_cuda(const AssembleMasksParams& params, const AssembleMasksInputs& inputs) {
  masks::check_params(params, kOp);
  masks::check_boxes(inputs.boxes, inputs.boxes.device, kOp);
  const std::int64_t instances = inputs.boxes.shape[0];
  return records_bytes(instances, divided_up(params.image_width, kStrip)) +
         static_cast<std::size_t>(instances) * sizeof(std::uint32_t);
}

void assemble_masks_cuda(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                         const Workspace& workspace, const TensorView& runs, const TensorView& offsets,
                         const CudaStream& stream) {
  const Device device = {DeviceType::kCuda, stream.device};
  masks::check_inputs(params, inputs, device, kOp);
  const std::int64_t instances = inputs.boxes.shape[0], capacity = runs.shape[0];
  masks::check_output(offsets, DType::kInt64, instances + 1, device, kOp, "offsets");
  masks::check_output(runs, DType::kUInt32, -1, device, kOp, "runs");
  const std::size_t needed = assemble_masks_workspace_cuda(params, inputs);
  if (workspace.bytes < needed) {
    fail(ErrorKind::kValue, kOp, ": workspace must have ", needed, " bytes, got ", workspace.bytes);
  }
  const cuda::DeviceGuard guard(stream, kOp);
  if (instances == 0) return cuda::fill_bytes(kOp, offsets.data, 0, sizeof(std::int64_t), stream);

  const std::int64_t strips = divided_up(params.image_width, kStrip);
  const unsigned grid = grid_of(inputs.mask_features, instances, strips);
  const Problem problem = problem_of(params, inputs);
  const auto pixels = static_cast<std::uint32_t>(params.image_height * params.image_width);
  auto* records = static_cast<Record*>(workspace.data);
  auto* ends = reinterpret_cast<std::uint32_t*>(static_cast<char*>(workspace.data) + records_bytes(instances, strips));
  const bool dynamic = params.head == MaskHead::kDynamic;
  cuda::launch(kOp, dynamic ? count_runs<MaskHead::kDynamic> : count_runs<MaskHead::kShape>, grid, kThreads, 0, stream,
               problem, static_cast<unsigned>(strips), pixels, records);
  cuda::launch(kOp, sum_runs, 1, kSumThreads, 0, stream, records, strips, instances, pixels, ends,
               runs.ptr<std::uint32_t>(), capacity, offsets.ptr<std::int64_t>());
  cuda::launch(kOp, dynamic ? write_runs<MaskHead::kDynamic> : write_runs<MaskHead::kShape>, grid, kThreads, 0, stream,
               problem, static_cast<unsigned>(strips), instances, pixels, records, offsets.ptr<const std::int64_t>(),
               runs.ptr<std::uint32_t>(), capacity);
}

void assemble_bitmaps_cuda(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                           const TensorView& bitmaps, const CudaStream& stream) {
  const Device device = {DeviceType::kCuda, stream.device};
  masks::check_inputs(params, inputs, device, kOp);
  const std::int64_t instances = inputs.boxes.shape[0], row_bytes = (params.image_width + 7) / 8;
  masks::check_bitmaps(bitmaps, instances, params.image_height, row_bytes, device, kOp);
  if (instances == 0) return;
  const cuda::DeviceGuard guard(stream, kOp);
  cuda::fill_bytes(kOp, bitmaps.data, 0, static_cast<std::size_t>(bitmaps.size()), stream);
  const std::int64_t strips = divided_up(params.image_width, kThreads);
  const unsigned grid = grid_of(inputs.mask_features, instances, strips);
  cuda::launch(kOp, params.head == MaskHead::kDynamic ? write_bits<MaskHead::kDynamic> : write_bits<MaskHead::kShape>,
               grid, kThreads, 0, stream, problem_of(params, inputs), static_cast<unsigned>(strips),
               bitmaps.ptr<std::uint8_t>());
}

}  // namespace centermask
