// Forward in float32 and float64, products in the same type.
#include <cstdint>

#include "deform_conv2d/forward_tile.h"
#include "simd/vector.h"

#define CENTERMASK_JOIN2(a, b) a##b
#define CENTERMASK_JOIN(a, b) CENTERMASK_JOIN2(a, b)

namespace centermask::deform {
namespace {

// How samples are kept in the panel and multiplied; forward_bf16_kernels.cc has another.
template <class T>
struct Exact {
  using Panel = T;
  static void put(Panel* to, Vector<T> values) { store(to, values); }
  // One column of a block's weights, for kLanes of its out channels from `first` on.
  static void put_weight(Panel* packed, std::int64_t column, std::int64_t first, Vector<T> values) {
    store(packed + column * kColumns<T> + first, values);
  }
  template <class Beside>
  static void multiply(const Panel* a, std::int64_t a_stride, const Panel* b, std::int64_t depth, T* c, bool accumulate,
                       Beside& beside) {
    multiply_block_beside<T, false>(a, a_stride, b, kColumns<T>, depth, c, kColumns<T>, accumulate, beside);
  }
};

}  // namespace

extern const ForwardKernels CENTERMASK_JOIN(forward_kernels_, CENTERMASK_ISA)[2];
const ForwardKernels CENTERMASK_JOIN(forward_kernels_, CENTERMASK_ISA)[2] = {forward_kernels<float, Exact<float>>(),
                                                                             forward_kernels<double, Exact<double>>()};

}  // namespace centermask::deform
