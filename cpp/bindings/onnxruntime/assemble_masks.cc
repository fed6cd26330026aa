// centermask::AssembleMasks: finished masks of a batch, as run lengths in image pixels.
//
// Inputs   mask_features [N, M, h, w], mask_params [N, K, P], boxes float [N, K, 4] (xyxy, input pixels),
//          labels int64 [N, K], count int64 [N], image_to_input double [N, 2, 3], image_size int64 [N, 2] (height,
//          width)
// Outputs  rle_counts uint32 [R], rle_offsets int64 [N * K + 1]: row k of picture n has the runs
//          rle_offsets[n * K + k] .. rle_offsets[n * K + k + 1]; none where k >= count[n]
// Attributes: head ("dynamic", "shape"), stride, threshold, box_margin.
#include <algorithm>
#include <cstring>

#include "centermask/error.h"
#include "centermask/masks.h"
#include "half.h"
#include "kernel.h"
#ifdef CENTERMASK_HAS_CUDA
#include "cuda_memory.h"
#endif

namespace centermask::ort {

namespace {

constexpr const char* kOp = "assemble_masks: ";

struct Inputs {
  TensorView features, params, boxes, labels, count, image_to_input, image_size;
};

// View of picture n, its first `rows` rows.
TensorView picture(const TensorView& batch, std::int64_t n, std::int64_t rows = -1) {
  TensorView view = batch;
  view.data = batch.ptr<char>() + n * batch.stride[0] * dtype_size(batch.dtype);
  view.rank = batch.rank - 1;
  for (int i = 0; i < view.rank; ++i) view.shape[i] = batch.shape[i + 1], view.stride[i] = batch.stride[i + 1];
  if (rows >= 0) view.shape[0] = rows;
  return view;
}

void expect_shape(const TensorView& view, const char* name, std::initializer_list<std::int64_t> shape) {
  bool fits = view.rank == static_cast<int>(shape.size());
  int i = 0;
  std::string wanted;
  for (const std::int64_t extent : shape) {
    wanted += (i > 0 ? ", " : "") + std::to_string(extent);
    fits = fits && view.shape[i++] == extent;
  }
  if (!fits) fail(ErrorKind::kValue, kOp, name, " must be [", wanted, "], got ", shape_text(view));
}

class AssembleMasks : public Kernel {
 public:
  AssembleMasks(const NodeInfo& node, const Description& description) : device_(description.device) {
    const std::string head = node.text("head", "dynamic");
    if (head != "dynamic" && head != "shape") {
      fail(ErrorKind::kValue, "AssembleMasks: attribute head must be dynamic or shape, got ", head);
    }
    params_.head = head == "shape" ? MaskHead::kShape : MaskHead::kDynamic;
    params_.stride = node.integer("stride", 4);
    params_.threshold = node.number("threshold", static_cast<float>(default_mask_threshold(params_.head)));
    params_.box_margin = node.number("box_margin", 0.1f);
  }

  void compute(const Run& run) const override {
    const Inputs in = inputs_of(run);
    const std::int64_t batch = in.boxes.shape[0], rows = in.boxes.shape[1];
#ifdef CENTERMASK_HAS_CUDA
    if (device_ == DeviceType::kCuda) {
      on_cuda(run, in, batch, rows);
      return;
    }
#endif
    on_cpu(run, in, batch, rows);
  }

 private:
  Inputs inputs_of(const Run& run) const {
    Inputs in = {run.input(0),       run.input(1),       run.input(2),      run.input(3),
                 run.input(4, true), run.input(5, true), run.input(6, true)};
    if (in.features.rank != 4) {
      fail(ErrorKind::kValue, kOp, "mask_features must be [N, M, h, w], got ", shape_text(in.features));
    }
    if (in.params.rank != 3) {
      fail(ErrorKind::kValue, kOp, "mask_params must be [N, K, P], got ", shape_text(in.params));
    }
    const std::int64_t batch = in.features.shape[0], rows = in.params.shape[1];
    expect_shape(in.params, "mask_params", {batch, rows, in.params.shape[2]});
    expect_shape(in.boxes, "boxes", {batch, rows, 4});
    expect_shape(in.labels, "labels", {batch, rows});
    expect_shape(in.count, "count", {batch});
    expect_shape(in.image_to_input, "image_to_input", {batch, 2, 3});
    expect_shape(in.image_size, "image_size", {batch, 2});
    for (std::int64_t n = 0; n < batch; ++n) {
      const std::int64_t count = in.count.ptr<const std::int64_t>()[n];
      if (count < 0 || count > rows) {
        fail(ErrorKind::kValue, kOp, "count must be in 0..", rows, ", got ", count, " for picture ", n);
      }
    }
    return in;
  }

  AssembleMasksParams params_of(const Inputs& in, std::int64_t n) const {
    AssembleMasksParams params = params_;
    params.image_height = in.image_size.ptr<const std::int64_t>()[2 * n];
    params.image_width = in.image_size.ptr<const std::int64_t>()[2 * n + 1];
    const double* matrix = in.image_to_input.ptr<const double>() + 6 * n;
    std::copy(matrix, matrix + 6, params.image_to_input);
    return params;
  }

  static AssembleMasksInputs picture_of(const Inputs& in, std::int64_t n) {
    const std::int64_t count = in.count.ptr<const std::int64_t>()[n];
    return {picture(in.features, n), picture(in.params, n, count), picture(in.boxes, n, count),
            picture(in.labels, n, count)};
  }

  void on_cpu(const Run& run, Inputs in, std::int64_t batch, std::int64_t rows) const {
    const ParallelFor& threads = run.parallel_for();
    const Widened features(in.features, threads), mask_params(in.params, threads);
    in.features = features.view(), in.params = mask_params.view();
    const TensorView offsets = run.output(1, {batch * rows + 1});
    auto* starts = offsets.ptr<std::int64_t>();
    starts[0] = 0;
    std::vector<std::uint32_t> runs;
    std::size_t used = 0;
    for (std::int64_t n = 0; n < batch; ++n) {
      const AssembleMasksParams params = params_of(in, n);
      const AssembleMasksInputs instances = picture_of(in, n);
      const std::int64_t count = instances.boxes.shape[0];
      std::int64_t* own = starts + n * rows;  // count + 1 of them, the first of which is the end of the picture before
      const TensorView own_offsets = make_view(own, DType::kInt64, {count + 1});
      std::int64_t room = capacity_for(params, instances.boxes), needed = 0;
      while (true) {
        runs.resize(used + static_cast<std::size_t>(room));
        needed = assemble_masks_cpu(params, instances, make_view(runs.data() + used, DType::kUInt32, {room}),
                                    own_offsets, threads);
        if (needed <= room) break;
        room = needed;
      }
      for (std::int64_t i = 0; i <= count; ++i) own[i] += static_cast<std::int64_t>(used);
      used += static_cast<std::size_t>(needed);
      std::fill(own + count + 1, own + rows + 1, static_cast<std::int64_t>(used));
    }
    const TensorView output = run.output(0, {static_cast<std::int64_t>(used)});
    if (used > 0) std::memcpy(output.data, runs.data(), used * sizeof(std::uint32_t));
  }

  // Most masks have two runs in each pixel column. Where that does not suffice, the core tells how many are needed.
  static std::int64_t capacity_for(const AssembleMasksParams& params, const TensorView& boxes) {
    const std::int64_t count = boxes.shape[0];
    std::vector<std::int64_t> windows(static_cast<std::size_t>(4 * count));
    mask_windows(params, boxes, make_view(windows.data(), DType::kInt64, {count, 4}));
    std::int64_t capacity = 16 * count;
    for (std::size_t i = 0; i < windows.size(); i += 4) capacity += 2 * windows[i + 2];
    return capacity;
  }

#ifdef CENTERMASK_HAS_CUDA
  // The number of runs is known on the device alone: this waits for it, once or twice for each picture.
  void on_cuda(const Run& run, const Inputs& in, std::int64_t batch, std::int64_t rows) const {
    const CudaStream stream = run.stream();
    std::vector<std::int64_t> starts(static_cast<std::size_t>(batch * rows + 1), 0);
    std::vector<std::uint32_t> runs;
    for (std::int64_t n = 0; n < batch; ++n) {
      const AssembleMasksParams params = params_of(in, n);
      const AssembleMasksInputs instances = picture_of(in, n);
      const std::int64_t count = instances.boxes.shape[0];
      std::int64_t* own = starts.data() + n * rows;
      const auto used = static_cast<std::int64_t>(runs.size());
      std::int64_t needed = 0;
      if (count > 0) {
        for (std::int64_t room = count * (16 + 2 * params.image_width / 4);; room = needed) {
          needed = assemble_picture(params, instances, room, stream, own, runs);
          if (needed <= room) break;
        }
      }
      for (std::int64_t i = 0; i <= count; ++i) own[i] = used + (count > 0 ? own[i] : 0);
      std::fill(own + count + 1, own + rows + 1, used + needed);
    }
    copy_to_device(stream, run.output(1, {batch * rows + 1}).data, starts.data(), starts.size() * sizeof starts[0]);
    const TensorView output = run.output(0, {static_cast<std::int64_t>(runs.size())});
    copy_to_device(stream, output.data, runs.data(), runs.size() * sizeof runs[0]);
    // The copies read vectors that end here.
    copy_to_host(stream, nullptr, nullptr, 0);
  }

  // Appends the runs of one picture if they fit `room`; returns how many there are. own: count + 1 offsets from 0.
  static std::int64_t assemble_picture(const AssembleMasksParams& params, const AssembleMasksInputs& instances,
                                       std::int64_t room, const CudaStream& stream, std::int64_t* own,
                                       std::vector<std::uint32_t>& runs) {
    const auto aligned = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
    const std::int64_t count = instances.boxes.shape[0];
    const std::size_t scratch = aligned(assemble_masks_workspace_cuda(params, instances));
    const std::size_t offset_bytes = static_cast<std::size_t>(count + 1) * sizeof(std::int64_t);
    const std::size_t run_bytes = static_cast<std::size_t>(room) * sizeof(std::uint32_t);
    const StreamMemory memory(stream, scratch + aligned(offset_bytes) + run_bytes);
    char* base = static_cast<char*>(memory.workspace().data);
    const Device device = instances.boxes.device;
    const TensorView offsets = make_view(base + scratch, DType::kInt64, {count + 1}, device);
    const TensorView run_view = make_view(base + scratch + aligned(offset_bytes), DType::kUInt32, {room}, device);
    assemble_masks_cuda(params, instances, {base, scratch}, run_view, offsets, stream);
    copy_to_host(stream, own, offsets.data, offset_bytes);
    const std::int64_t needed = own[count];
    if (needed <= room) {
      const std::size_t used = runs.size();
      runs.resize(used + static_cast<std::size_t>(needed));
      copy_to_host(stream, runs.data() + used, run_view.data, static_cast<std::size_t>(needed) * sizeof(std::uint32_t));
    }
    return needed;
  }
#endif

  DeviceType device_;
  AssembleMasksParams params_;
};

// Offsets have a known shape where K and N are known; the runs never.
void infer(const ShapeInference& shapes) {
  const Dims boxes = shapes.input(2);
  Dim rows;
  if (boxes.size() == 3 && boxes[0].size >= 0 && boxes[1].size >= 0) rows.size = boxes[0].size * boxes[1].size + 1;
  shapes.set_output(0, kUInt32, {Dim{}});
  shapes.set_output(1, kInt64, {rows});
}

}  // namespace

void describe_assemble_masks(std::vector<Description>& operators) {
  for_each_variant([&](ElementType type, DeviceType device) {
    Description description;
    description.name = "AssembleMasks";
    description.device = device;
    description.inputs = {
        {type}, {type}, {kFloat}, {kInt64}, {kInt64, false, true}, {kDouble, false, true}, {kInt64, false, true}};
    description.outputs = {kUInt32, kInt64};
    description.create = [](const NodeInfo& node, const Description& own) -> std::unique_ptr<Kernel> {
      return std::make_unique<AssembleMasks>(node, own);
    };
    description.infer = &infer;
    operators.push_back(std::move(description));
  });
}

}  // namespace centermask::ort
