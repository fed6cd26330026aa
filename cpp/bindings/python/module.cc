#include "array.h"
#include "register.h"

PYBIND11_MODULE(_core, module) {
  using namespace centermask::python;
  module.attr("__version__") = CENTERMASK_VERSION;
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
