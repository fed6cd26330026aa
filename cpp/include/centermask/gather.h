// The 3x3 neighbourhoods of chosen cells: what lets a head be evaluated at the centres alone.
#pragma once

#include "centermask/cuda.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"

namespace centermask {

// features [N, F, H, W]: float32 or float64, any strides. index [N, K]: int64, y * W + x, any strides.
// patches [N, K, F * 9]: of the features' dtype, row-major; column f * 9 + ky * 3 + kx holds feature f at
// (y + ky - 1, x + kx - 1), and 0 beyond the map. An index outside [0, H * W) gives a row of zeros.
void check_gather_patches(const TensorView& features, const TensorView& index, const TensorView& patches);

void gather_patches_cpu(const TensorView& features, const TensorView& index, const TensorView& patches,
                        const ParallelFor& parallel = {});

// On CUDA the features may be float32, float16 or bfloat16.
void gather_patches_cuda(const TensorView& features, const TensorView& index, const TensorView& patches,
                         const CudaStream& stream);

}  // namespace centermask
