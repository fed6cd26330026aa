// Centre decoding: the peaks of a heatmap, best first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "centermask/cuda.h"
#include "centermask/parallel.h"
#include "centermask/tensor_view.h"
#include "centermask/workspace.h"

namespace centermask {

struct DecodeParams {
  std::int64_t top_k = 100;      // most centres of one image, over all classes
  double score_threshold = 0.0;  // in [0, 1]; 0 keeps every peak
};

// heatmap [N, C, H, W]: logits, float32 or float64, any strides.
// scores [N, K] of the heatmap's dtype, labels [N, K] and index [N, K] (y * W + x) int64, count [N] int64: row-major.
//
// A cell is a centre if it equals the largest value of its 3x3 neighbourhood in its own class map, so that plateaus
// are kept whole. NaN counts as -inf as a neighbour and is never a centre. -inf is a value like any other (its score
// is 0). Centres are ordered by logit (largest first; -0 equals +0), then class, then index. Only centres with
// logit >= log(t / (1 - t)) of the score threshold t are kept; that logit is computed once in double, so that a score
// within one rounding of t may fall on either side of it, and t = 1 keeps only +inf. Rows after `count` hold score 0,
// label -1, index 0. The result does not depend on the number of threads.
void check_decode_centers(const TensorView& heatmap, const DecodeParams& params, const TensorView& scores,
                          const TensorView& labels, const TensorView& index, const TensorView& count);

void decode_centers_cpu(const TensorView& heatmap, const DecodeParams& params, const TensorView& scores,
                        const TensorView& labels, const TensorView& index, const TensorView& count,
                        const ParallelFor& parallel = {});

// On CUDA the heatmap may be float32, float16 or bfloat16; scores are float32. The same order as on the CPU.
// An image must have less than 2^32 cells. The workspace's size depends on the shapes and on top_k alone; its content
// need not be set. Two launches, and a few more where top_k exceeds 4096.
std::size_t decode_centers_workspace_cuda(const TensorView& heatmap, const DecodeParams& params);

void decode_centers_cuda(const TensorView& heatmap, const DecodeParams& params, const Workspace& workspace,
                         const TensorView& scores, const TensorView& labels, const TensorView& index,
                         const TensorView& count, const CudaStream& stream);

}  // namespace centermask
