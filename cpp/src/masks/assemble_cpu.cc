// Instances are taken by the threads one at a time; each gives sorted column-major positions at which its mask begins
// and ends, from which run lengths and bitmaps are written.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "centermask/error.h"
#include "centermask/isa.h"
#include "centermask/masks.h"
#include "masks/check.h"
#include "masks/crossings.h"
#include "masks/geometry.h"
#include "masks/kernels.h"

namespace centermask {

namespace {

using masks::Axis;
using masks::Box;
using masks::Range;

const masks::FieldKernels& kernels() {
  switch (isa_used()) {
#if defined(CENTERMASK_HAVE_AVX512)
    case Isa::kAvx512: return masks::field_kernels_avx512;
#endif
#if defined(CENTERMASK_HAVE_AVX2)
    case Isa::kAvx2: return masks::field_kernels_avx2;
#endif
    default: return masks::field_kernels_baseline;
  }
}

Box box_at(const TensorView& boxes, std::int64_t i) {
  const float* row = boxes.ptr<const float>() + i * boxes.stride[0];
  const auto at = [&](int k) { return static_cast<double>(row[k * boxes.stride[1]]); };
  return {at(0), at(1), at(2), at(3)};
}

// What one thread needs, kept from instance to instance.
struct Worker {
  std::vector<float> params, field;
  std::vector<masks::CellPosition> row_positions, column_positions;
  masks::CrossingScratch crossings;
  std::vector<std::uint32_t> toggles;
};

class Assembler {
 public:
  Assembler(const AssembleMasksParams& params, const AssembleMasksInputs& inputs)
      : params_(params), inputs_(inputs), kernels_(kernels()) {
    x_axis_ = masks::x_axis(params, inputs.mask_features.shape[2]);
    y_axis_ = masks::y_axis(params, inputs.mask_features.shape[1]);
  }

  // Leaves the mask's positions in worker.toggles.
  void assemble(std::int64_t instance, Worker& worker) const {
    worker.toggles.clear();
    const Box box = box_at(inputs_.boxes, instance);
    const std::int64_t channel = channel_of(instance);
    if (!masks::has_area(box) || channel < 0) return;
    const Range columns = masks::range_of(x_axis_, box.x0, box.x1, params_.box_margin);
    const Range rows = masks::range_of(y_axis_, box.y0, box.y1, params_.box_margin);
    if (columns.count == 0 || rows.count == 0) return;
    evaluate(instance, channel, box, rows, columns, worker);
    masks::crossings(worker.field.data(), y_axis_, rows, x_axis_, columns, params_.threshold, worker.crossings,
                     worker.toggles);
  }

 private:
  std::int64_t channel_of(std::int64_t instance) const {
    if (params_.head == MaskHead::kDynamic || inputs_.mask_features.shape[0] == 1) return 0;
    return inputs_.labels.ptr<const std::int64_t>()[instance * inputs_.labels.stride[0]];
  }

  void evaluate(std::int64_t instance, std::int64_t channel, const Box& box, const Range& rows, const Range& columns,
                Worker& worker) const {
    const TensorView &features = inputs_.mask_features, &all = inputs_.mask_params;
    worker.params.resize(static_cast<std::size_t>(all.shape[1]));
    const float* from = all.ptr<const float>() + instance * all.stride[0];
    for (std::int64_t i = 0; i < all.shape[1]; ++i)
      worker.params[static_cast<std::size_t>(i)] = from[i * all.stride[1]];
    worker.field.resize(static_cast<std::size_t>(rows.count * columns.count));

    const bool dynamic = params_.head == MaskHead::kDynamic;
    if (dynamic) {
      const double size = std::max({box.x1 - box.x0, box.y1 - box.y0, static_cast<double>(params_.stride)});
      masks::relative_positions(x_axis_, columns, box.x0, box.x1, size, worker.column_positions);
      masks::relative_positions(y_axis_, rows, box.y0, box.y1, size, worker.row_positions);
    } else {
      masks::shape_positions(x_axis_, columns, box.x0, box.x1, worker.column_positions);
      masks::shape_positions(y_axis_, rows, box.y0, box.y1, worker.row_positions);
    }
    masks::FieldArguments arguments;
    arguments.params = worker.params.data();
    arguments.channel_stride = features.stride[0];
    arguments.row_stride = features.stride[1];
    arguments.column_stride = features.stride[2];
    arguments.features = features.ptr<const float>() + channel * features.stride[0] + rows.first * features.stride[1] +
                         columns.first * features.stride[2];
    arguments.rows = rows.count;
    arguments.columns = columns.count;
    arguments.row_positions = worker.row_positions.data();
    arguments.column_positions = worker.column_positions.data();
    arguments.field = worker.field.data();
    (dynamic ? kernels_.dynamic : kernels_.shape)(arguments);
  }

  const AssembleMasksParams& params_;
  const AssembleMasksInputs& inputs_;
  const masks::FieldKernels& kernels_;
  Axis x_axis_, y_axis_;
};

// Calls use(instance, worker, number of the worker) for each instance, on all threads.
template <class Use>
void for_instances(const Assembler& assembler, std::int64_t count, std::int64_t workers, const ParallelFor& parallel,
                   Use use) {
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> out_of_memory{false};
  parallel(workers, [&](std::int64_t number) {
    try {
      Worker worker;
      for (std::int64_t i = next++; i < count; i = next++) {
        assembler.assemble(i, worker);
        use(i, worker, number);
      }
    } catch (const std::bad_alloc&) {  // a task must not throw
      out_of_memory = true;
    }
  });
  if (out_of_memory) fail(ErrorKind::kRuntime, "assemble_masks: out of memory");
}

// Run lengths in blocks that never move, so that a growing list is not copied again and again.
class RunStore {
 public:
  void append(std::uint32_t run) {
    if (size_ % kBlock == 0) blocks_.push_back(std::make_unique<std::uint32_t[]>(kBlock));
    blocks_.back()[size_++ % kBlock] = run;
  }

  std::size_t size() const { return size_; }

  void copy(std::size_t begin, std::size_t end, std::uint32_t* to) const {
    while (begin < end) {
      const std::size_t piece = std::min(end - begin, kBlock - begin % kBlock);
      std::memcpy(to, blocks_[begin / kBlock].get() + begin % kBlock, piece * sizeof(std::uint32_t));
      to += piece;
      begin += piece;
    }
  }

 private:
  static constexpr std::size_t kBlock = 1 << 14;
  std::vector<std::unique_ptr<std::uint32_t[]>> blocks_;
  std::size_t size_ = 0;
};

struct Piece {
  std::int64_t worker = 0;
  std::size_t begin = 0, end = 0;
};

std::int64_t worker_count(std::int64_t instances, const ParallelFor& parallel) {
  return std::max<std::int64_t>(1, std::min<std::int64_t>(instances, parallel.threads));
}

void fill(const std::vector<std::uint32_t>& toggles, std::int64_t height, const std::int64_t* window,
          std::uint8_t* bitmap) {
  const std::int64_t width = window[2];
  for (std::size_t i = 0; i + 1 < toggles.size(); i += 2) {
    std::int64_t position = toggles[i];
    const std::int64_t end = toggles[i + 1];
    for (std::int64_t x = position / height; position < end; ++x) {
      const std::int64_t stop = std::min(end, (x + 1) * height);
      std::uint8_t* pixel = bitmap + (position - x * height - window[1]) * width + (x - window[0]);
      for (; position < stop; ++position, pixel += width) *pixel = 1;
    }
  }
}

}  // namespace

double default_mask_threshold(MaskHead head) { return head == MaskHead::kDynamic ? 0.0 : 0.5; }

std::int64_t assemble_masks_cpu(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                                const TensorView& runs, const TensorView& offsets, const ParallelFor& parallel) {
  constexpr const char* op = "assemble_masks";
  masks::check_inputs(params, inputs, Device{}, op);
  const std::int64_t count = inputs.boxes.shape[0];
  masks::check_output(offsets, DType::kInt64, count + 1, Device{}, op, "offsets");
  masks::check_output(runs, DType::kUInt32, -1, Device{}, op, "runs");
  const auto pixels = static_cast<std::uint32_t>(params.image_height * params.image_width);
  const std::int64_t workers = worker_count(count, parallel);
  std::vector<RunStore> stores(static_cast<std::size_t>(workers));
  std::vector<Piece> pieces(static_cast<std::size_t>(count));

  const Assembler assembler(params, inputs);
  for_instances(assembler, count, workers, parallel, [&](std::int64_t i, const Worker& worker, std::int64_t number) {
    RunStore& store = stores[static_cast<std::size_t>(number)];
    const std::size_t begin = store.size();
    std::uint32_t last = 0;
    for (const std::uint32_t position : worker.toggles) {
      if (position == pixels) break;  // a run that reaches the last pixel ends by itself
      store.append(position - last);
      last = position;
    }
    store.append(pixels - last);
    pieces[static_cast<std::size_t>(i)] = {number, begin, store.size()};
  });

  auto* ends = offsets.ptr<std::int64_t>();
  ends[0] = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const Piece& piece = pieces[static_cast<std::size_t>(i)];
    ends[i + 1] = ends[i] + static_cast<std::int64_t>(piece.end - piece.begin);
  }
  if (ends[count] <= runs.shape[0]) {
    for (std::int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[static_cast<std::size_t>(i)];
      stores[static_cast<std::size_t>(piece.worker)].copy(piece.begin, piece.end, runs.ptr<std::uint32_t>() + ends[i]);
    }
  }
  return ends[count];
}

void mask_windows(const AssembleMasksParams& params, const TensorView& boxes, const TensorView& windows) {
  constexpr const char* op = "mask_windows";
  masks::check_params(params, op);
  masks::check_boxes(boxes, Device{}, op);
  const std::int64_t count = boxes.shape[0];
  if (windows.dtype != DType::kInt64 || windows.rank != 2 || windows.shape[0] != count || windows.shape[1] != 4 ||
      !windows.contiguous()) {
    fail(ErrorKind::kValue, op, ": windows must be contiguous int64 [I=", count, ", 4], got ", shape_text(windows));
  }
  const Axis x_axis = masks::x_axis(params, 0), y_axis = masks::y_axis(params, 0);
  auto* out = windows.ptr<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i, out += 4) {
    out[0] = out[1] = out[2] = out[3] = 0;
    const Box box = box_at(boxes, i);
    if (!masks::has_area(box)) continue;
    const Range x = masks::range_of(x_axis, box.x0, box.x1, params.box_margin);
    const Range y = masks::range_of(y_axis, box.y0, box.y1, params.box_margin);
    if (x.begin == x.end || y.begin == y.end) continue;
    out[0] = x.begin;
    out[1] = y.begin;
    out[2] = x.end - x.begin;
    out[3] = y.end - y.begin;
  }
}

void assemble_bitmaps_cpu(const AssembleMasksParams& params, const AssembleMasksInputs& inputs,
                          const TensorView& bitmaps, const ParallelFor& parallel) {
  constexpr const char* op = "assemble_masks";
  masks::check_inputs(params, inputs, Device{}, op);
  const std::int64_t count = inputs.boxes.shape[0];
  std::vector<std::int64_t> windows(static_cast<std::size_t>(4 * count));
  mask_windows(params, inputs.boxes, make_view(windows.data(), DType::kInt64, {count, 4}));
  std::vector<std::int64_t> begins(static_cast<std::size_t>(count) + 1, 0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    begins[i + 1] = begins[i] + windows[4 * i + 2] * windows[4 * i + 3];
  }
  masks::check_output(bitmaps, DType::kUInt8, begins.back(), Device{}, op, "bitmaps");

  const Assembler assembler(params, inputs);
  for_instances(assembler, count, worker_count(count, parallel), parallel,
                [&](std::int64_t i, const Worker& worker, std::int64_t) {
                  const auto at = static_cast<std::size_t>(i);
                  if (begins[at + 1] == begins[at]) return;  // and with no pixels at all, the memory may be null
                  std::uint8_t* bitmap = bitmaps.ptr<std::uint8_t>() + begins[at];
                  std::memset(bitmap, 0, static_cast<std::size_t>(begins[at + 1] - begins[at]));
                  fill(worker.toggles, params.image_height, &windows[4 * at], bitmap);
                });
}

}  // namespace centermask
