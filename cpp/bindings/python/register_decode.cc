#include "array.h"
#include "centermask/decode.h"
#include "register.h"

namespace centermask::python {

namespace {

py::tuple decode_centers(const py::object& heatmap, std::int64_t top_k, double score_threshold, int threads) {
  const TensorView input = view_of(heatmap, "decode_centers", "heatmap");
  if (input.rank != 4) {
    fail(ErrorKind::kValue, "decode_centers: heatmap must be [N, C, H, W], got ", shape_text(input));
  }
  DecodeParams params;
  params.top_k = top_k;
  params.score_threshold = score_threshold;
  const std::int64_t n = input.shape[0];
  const std::int64_t k = top_k < 0 ? 0 : top_k;  // a wrong top_k is the core's to report
  py::array scores = new_array(input.dtype, {n, k});
  py::array labels = new_array(DType::kInt64, {n, k});
  py::array index = new_array(DType::kInt64, {n, k});
  py::array count = new_array(DType::kInt64, {n});
  const TensorView scores_view = view_of(scores, "decode_centers", "scores");
  const TensorView labels_view = view_of(labels, "decode_centers", "labels");
  const TensorView index_view = view_of(index, "decode_centers", "index");
  const TensorView count_view = view_of(count, "decode_centers", "count");
  const ParallelFor parallel = threads_of(threads);
  {
    py::gil_scoped_release release;
    decode_centers_cpu(input, params, scores_view, labels_view, index_view, count_view, parallel);
  }
  return py::make_tuple(scores, labels, index, count);
}

#ifdef CENTERMASK_HAS_CUDA
void decode_centers_on_cuda(const py::object& heatmap, std::int64_t top_k, double score_threshold,
                            const py::object& scores, const py::object& labels, const py::object& index,
                            const py::object& count, const py::object& allocate, std::uintptr_t stream_handle) {
  const TensorView input = device_view_of(heatmap, "decode_centers", "heatmap");
  const TensorView scores_view = device_view_of(scores, "decode_centers", "scores");
  const TensorView labels_view = device_view_of(labels, "decode_centers", "labels");
  const TensorView index_view = device_view_of(index, "decode_centers", "index");
  const TensorView count_view = device_view_of(count, "decode_centers", "count");
  const int device = check_devices("decode_centers", {{"heatmap", input},
                                                      {"scores", scores_view},
                                                      {"labels", labels_view},
                                                      {"index", index_view},
                                                      {"count", count_view}});
  DecodeParams params;
  params.top_k = top_k;
  params.score_threshold = score_threshold;
  check_decode_centers(input, params, scores_view, labels_view, index_view, count_view);
  const DeviceMemory memory(allocate, decode_centers_workspace_cuda(input, params));
  py::gil_scoped_release release;
  decode_centers_cuda(input, params, memory.workspace(), scores_view, labels_view, index_view, count_view,
                      stream_of(stream_handle, device));
}
#endif

}  // namespace

void register_decode(py::module_& module) {
  module.def("decode_centers", &decode_centers, py::arg("heatmap"), py::arg("top_k"), py::arg("score_threshold"),
             py::arg("threads"));
#ifdef CENTERMASK_HAS_CUDA
  module.def("decode_centers_cuda", &decode_centers_on_cuda, py::arg("heatmap"), py::arg("top_k"),
             py::arg("score_threshold"), py::arg("scores"), py::arg("labels"), py::arg("index"), py::arg("count"),
             py::arg("allocate"), py::arg("stream_handle"));
#endif
}

}  // namespace centermask::python
