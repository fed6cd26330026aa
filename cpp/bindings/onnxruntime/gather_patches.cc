// centermask::GatherPatches: features [N, F, H, W], index int64 [N, K] -> patches [N, K, F * 9].
#include "centermask/error.h"
#include "centermask/gather.h"
#include "half.h"
#include "kernel.h"

namespace centermask::ort {

namespace {

class GatherPatches : public Kernel {
 public:
  explicit GatherPatches(DeviceType device) : device_(device) {}

  void compute(const Run& run) const override {
    const TensorView features = run.input(0), index = run.input(1);
    if (features.rank != 4 || index.rank != 2) {
      fail(ErrorKind::kValue, "gather_patches: features must be [N, F, H, W] and index [N, K], got ",
           shape_text(features), " and ", shape_text(index));
    }
    const TensorView patches = run.output(0, {index.shape[0], index.shape[1], features.shape[1] * 9});
#ifdef CENTERMASK_HAS_CUDA
    if (device_ == DeviceType::kCuda) {
      gather_patches_cuda(features, index, patches, run.stream());
      return;
    }
#endif
    const ParallelFor& threads = run.parallel_for();
    const Widened features32(features, threads);
    const Narrowed patches32(patches);
    gather_patches_cpu(features32.view(), index, patches32.view(), threads);
    patches32.finish(threads);
  }

 private:
  DeviceType device_;
};

void infer(const ShapeInference& shapes) {
  const Dims features = shapes.input(0), index = shapes.input(1);
  if (features.size() != 4 || index.size() != 2) return;
  Dim columns;
  if (features[1].size >= 0) columns.size = 9 * features[1].size;
  shapes.set_output(0, shapes.input_type(0), {index[0], index[1], columns});
}

}  // namespace

void describe_gather_patches(std::vector<Description>& operators) {
  for_each_variant([&](ElementType type, DeviceType device) {
    Description description;
    description.name = "GatherPatches";
    description.device = device;
    description.inputs = {{type}, {kInt64}};
    description.outputs = {type};
    description.create = [](const NodeInfo&, const Description& own) -> std::unique_ptr<Kernel> {
      return std::make_unique<GatherPatches>(own.device);
    };
    description.infer = &infer;
    operators.push_back(std::move(description));
  });
}

}  // namespace centermask::ort
