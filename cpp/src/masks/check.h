#pragma once

#include "centermask/masks.h"

namespace centermask::masks {

// Shape rules. `op` is for the messages.
void check_params(const AssembleMasksParams& params, const char* op);
void check_boxes(const TensorView& boxes, const char* op);
void check_inputs(const AssembleMasksParams& params, const AssembleMasksInputs& inputs, const char* op);
void check_output(const TensorView& view, DType dtype, std::int64_t size, const char* op, const char* argument);

}  // namespace centermask::masks
