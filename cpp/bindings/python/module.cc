#include "array.h"
#include "register.h"

PYBIND11_MODULE(_core, module) {
  using namespace centermask::python;
  module.attr("__version__") = CENTERMASK_VERSION;
#ifdef CENTERMASK_HAS_CUDA
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif
  register_errors(module);
  register_build(module);
  register_decode(module);
  register_deform_conv2d(module);
  register_gather(module);
  register_isa(module);
  register_masks(module);
  register_preprocess(module);
  register_rle(module);
}
