// float16 tensors on the CPU, whose kernels compute in float32: widened before, rounded after.
#pragma once

#include <cstdint>
#include <memory>

#include "centermask/parallel.h"
#include "centermask/tensor_view.h"

namespace centermask::ort {

float half_to_float(std::uint16_t half);
std::uint16_t float_to_half(float value);  // to nearest, ties to even; beyond 65519 infinity; NaN stays NaN

// A tensor as float32: itself, or a copy of a row-major float16 tensor.
class Widened {
 public:
  Widened() = default;
  Widened(const TensorView& tensor, const ParallelFor& parallel_for);
  const TensorView& view() const { return view_; }

 private:
  std::unique_ptr<float[]> values_;
  TensorView view_;
};

// Where a kernel writes float32 for a row-major output that may be float16.
class Narrowed {
 public:
  explicit Narrowed(const TensorView& output);
  const TensorView& view() const { return view_; }
  void finish(const ParallelFor& parallel_for) const;  // writes the output, if it is float16

 private:
  std::unique_ptr<float[]> values_;
  TensorView view_, output_;
};

}  // namespace centermask::ort
