#include "array.h"
#include "centermask/gather.h"
#include "register.h"

namespace centermask::python {

namespace {

py::array gather_patches(const py::object& features, const py::object& index, int threads) {
  const TensorView source = view_of(features, "gather_patches", "features");
  const TensorView cells = view_of(index, "gather_patches", "index");
  // The output takes its shape from the inputs, so their ranks are looked at here; the core checks all the rest.
  if (source.rank != 4) {
    fail(ErrorKind::kValue, "gather_patches: features must be [N, F, H, W], got ", shape_text(source));
  }
  if (cells.rank != 2) fail(ErrorKind::kValue, "gather_patches: index must be [N, K], got ", shape_text(cells));
  py::array patches = new_array(source.dtype, {source.shape[0], cells.shape[1], source.shape[1] * 9});
  const TensorView patches_view = view_of(patches, "gather_patches", "patches");
  const ParallelFor parallel = threads_of(threads);
  {
    py::gil_scoped_release release;
    gather_patches_cpu(source, cells, patches_view, parallel);
  }
  return patches;
}

#ifdef CENTERMASK_HAS_CUDA
void gather_patches_on_cuda(const py::object& features, const py::object& index, const py::object& patches,
                            std::uintptr_t stream_handle) {
  const TensorView source = device_view_of(features, "gather_patches", "features");
  const TensorView cells = device_view_of(index, "gather_patches", "index");
  const TensorView patches_view = device_view_of(patches, "gather_patches", "patches");
  const int device =
      check_devices("gather_patches", {{"features", source}, {"index", cells}, {"patches", patches_view}});
  py::gil_scoped_release release;
  gather_patches_cuda(source, cells, patches_view, stream_of(stream_handle, device));
}
#endif

}  // namespace

void register_gather(py::module_& module) {
  module.def("gather_patches", &gather_patches, py::arg("features"), py::arg("index"), py::arg("threads"));
#ifdef CENTERMASK_HAS_CUDA
  module.def("gather_patches_cuda", &gather_patches_on_cuda, py::arg("features"), py::arg("index"), py::arg("patches"),
             py::arg("stream_handle"));
#endif
}

}  // namespace centermask::python
