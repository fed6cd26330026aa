// centermask::DecodeCenters: heatmap [N, C, H, W] -> scores float [N, K], labels, index int64 [N, K], count int64 [N].
// Attributes: top_k (K), score_threshold.
#include "centermask/decode.h"
#include "centermask/error.h"
#include "half.h"
#include "kernel.h"
#ifdef CENTERMASK_HAS_CUDA
#include "cuda_memory.h"
#endif

namespace centermask::ort {

namespace {

constexpr std::int64_t kDefaultTopK = 100;

class DecodeCenters : public Kernel {
 public:
  DecodeCenters(const NodeInfo& node, const Description& description) : device_(description.device) {
    params_.top_k = node.integer("top_k", kDefaultTopK);
    params_.score_threshold = node.number("score_threshold", 0);
    if (params_.top_k < 1) fail(ErrorKind::kValue, "DecodeCenters: top_k must be at least 1, got ", params_.top_k);
    if (!(params_.score_threshold >= 0 && params_.score_threshold <= 1)) {
      fail(ErrorKind::kValue, "DecodeCenters: score_threshold must be in 0..1, got ", params_.score_threshold);
    }
  }

  void compute(const Run& run) const override {
    const TensorView heatmap = run.input(0);
    if (heatmap.rank != 4) {
      fail(ErrorKind::kValue, "decode_centers: heatmap must be [N, C, H, W], got ", shape_text(heatmap));
    }
    const std::int64_t batch = heatmap.shape[0];
    const TensorView scores = run.output(0, {batch, params_.top_k}), labels = run.output(1, {batch, params_.top_k}),
                     index = run.output(2, {batch, params_.top_k}), count = run.output(3, {batch});
#ifdef CENTERMASK_HAS_CUDA
    if (device_ == DeviceType::kCuda) {
      const CudaStream stream = run.stream();
      const StreamMemory memory(stream, decode_centers_workspace_cuda(heatmap, params_));
      decode_centers_cuda(heatmap, params_, memory.workspace(), scores, labels, index, count, stream);
      return;
    }
#endif
    const Widened heatmap32(heatmap, run.parallel_for());
    decode_centers_cpu(heatmap32.view(), params_, scores, labels, index, count, run.parallel_for());
  }

 private:
  DeviceType device_;
  DecodeParams params_;
};

void infer(const ShapeInference& shapes) {
  const Dims heatmap = shapes.input(0);
  if (heatmap.size() != 4) return;
  const Dim top_k = {shapes.integer("top_k").value_or(kDefaultTopK), ""};
  shapes.set_output(0, kFloat, {heatmap[0], top_k});
  for (std::size_t i : {1, 2}) shapes.set_output(i, kInt64, {heatmap[0], top_k});
  shapes.set_output(3, kInt64, {heatmap[0]});
}

}  // namespace

void describe_decode_centers(std::vector<Description>& operators) {
  for_each_variant([&](ElementType type, DeviceType device) {
    Description description;
    description.name = "DecodeCenters";
    description.device = device;
    description.inputs = {{type}};
    description.outputs = {kFloat, kInt64, kInt64, kInt64};
    description.create = [](const NodeInfo& node, const Description& own) -> std::unique_ptr<Kernel> {
      return std::make_unique<DecodeCenters>(node, own);
    };
    description.infer = &infer;
    operators.push_back(std::move(description));
  });
}

}  // namespace centermask::ort
