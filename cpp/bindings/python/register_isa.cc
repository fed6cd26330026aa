#include <string>

#include "array.h"
#include "centermask/isa.h"
#include "register.h"

namespace centermask::python {

void register_isa(py::module_& module) {
  module.def("isa_available", [] {
    py::list names;
    for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
      if (isa_available(isa)) names.append(isa_name(isa));
    }
    return py::tuple(names);
  });
  module.def("isa_used", [] { return std::string(isa_name(isa_used())); });
}

}  // namespace centermask::python
