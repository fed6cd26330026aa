// Forward of float32 with products in bfloat16: samples and weights are rounded to 8 bits of mantissa, sums stay in
// float32. For an even number of channels in each group: products are taken in pairs.
#include <immintrin.h>

#include <cstdint>

#include "deform_conv2d/forward_tile.h"
#include "simd/vector.h"

namespace centermask::deform {
namespace {

struct Bf16 {
  using Panel = std::uint16_t;

  static __m256i rounded(Vector<float> values) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(values)));
  }
  static void put(Panel* to, Vector<float> values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(values));
  }
  // Weights are in pairs of columns: [column / 2][out channel][column % 2].
  static void put_weight(Panel* packed, std::int64_t column, std::int64_t first, Vector<float> values) {
    Panel narrow[kLanes<float>];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(narrow), rounded(values));
    Panel* to = packed + (column / 2 * kColumns<float> + first) * 2 + column % 2;
    for (std::int64_t i = 0; i < kLanes<float>; ++i) to[2 * i] = narrow[i];
  }

  template <class Beside>
  static inline __attribute__((always_inline)) void multiply(const Panel* a, std::int64_t a_stride, const Panel* b,
                                                             std::int64_t depth, float* c, bool accumulate,
                                                             Beside& beside) {
    constexpr int kN = kLanes<float>, kStep = kColumns<float>;
    __m512 sum[kRows][2];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = accumulate ? _mm512_loadu_ps(c + r * kStep) : _mm512_setzero_ps();
      sum[r][1] = accumulate ? _mm512_loadu_ps(c + r * kStep + kN) : _mm512_setzero_ps();
    }
    for (std::int64_t d = 0; d < depth;) {
      const std::int64_t until = beside.until(d, depth);
      for (; d < until; d += 2) {
        const __m512bh b0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b));
        const __m512bh b1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + 2 * kN));
        b += 2 * kStep;
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          std::int32_t pair;
          __builtin_memcpy(&pair, a + r * a_stride, sizeof pair);
          const __m512bh s = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], s, b0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], s, b1);
        }
        a += 2;
      }
      beside.step();
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_ps(c + r * kStep, sum[r][0]);
      _mm512_storeu_ps(c + r * kStep + kN, sum[r][1]);
    }
  }
};

}  // namespace

extern const ForwardKernels forward_kernels_avx512bf16[1];
const ForwardKernels forward_kernels_avx512bf16[1] = {forward_kernels<float, Bf16>()};

}  // namespace centermask::deform
