// Vectors of the instruction set that the including source is compiled for, and the register-blocked matrix product.
// Only for sources compiled by centermask_isa_sources: everything has internal linkage.
#pragma once

#include <cstdint>

namespace centermask {
namespace {

// kRows x (2 vectors) accumulators fill the register file, with room for two loads and a broadcast.
#if defined(CENTERMASK_ISA_avx512)
#define CENTERMASK_VECTOR_BYTES 64
constexpr int kRows = 12;
constexpr int kRegisters = 32;
#elif defined(CENTERMASK_ISA_avx2)
#define CENTERMASK_VECTOR_BYTES 32
constexpr int kRows = 6;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
#define CENTERMASK_VECTOR_BYTES 16
constexpr int kRows = 12;
constexpr int kRegisters = 32;
#else
#define CENTERMASK_VECTOR_BYTES 16
constexpr int kRows = 4;
constexpr int kRegisters = 16;
#endif

// The vector of T, and that of integers of the same size, for comparisons and indices.
template <class T>
struct Simd;

template <>
struct Simd<float> {
  using Integer = std::int32_t;
  typedef std::int32_t Integers __attribute__((vector_size(CENTERMASK_VECTOR_BYTES)));
  typedef float Vector __attribute__((vector_size(CENTERMASK_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(CENTERMASK_VECTOR_BYTES), aligned(4), may_alias));
  typedef std::int32_t UnalignedIntegers __attribute__((vector_size(CENTERMASK_VECTOR_BYTES), aligned(4), may_alias));
  static constexpr int kLanes = CENTERMASK_VECTOR_BYTES / 4;
};

template <>
struct Simd<double> {
  using Integer = std::int64_t;
  typedef std::int64_t Integers __attribute__((vector_size(CENTERMASK_VECTOR_BYTES)));
  typedef double Vector __attribute__((vector_size(CENTERMASK_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(CENTERMASK_VECTOR_BYTES), aligned(8), may_alias));
  typedef std::int64_t UnalignedIntegers __attribute__((vector_size(CENTERMASK_VECTOR_BYTES), aligned(8), may_alias));
  static constexpr int kLanes = CENTERMASK_VECTOR_BYTES / 8;
};

template <class T>
using Vector = typename Simd<T>::Vector;

template <class T>
using Integer = typename Simd<T>::Integer;

template <class T>
using Integers = typename Simd<T>::Integers;

template <class T>
constexpr int kLanes = Simd<T>::kLanes;

template <class T>
constexpr int kColumns = 2 * Simd<T>::kLanes;

template <class T>
inline __attribute__((always_inline)) Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(from);
}

template <class T>
inline __attribute__((always_inline)) void store(T* to, Vector<T> value) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(to) = value;
}

template <class T>
inline __attribute__((always_inline)) void store_integers(Integer<T>* to, Integers<T> value) {
  *reinterpret_cast<typename Simd<T>::UnalignedIntegers*>(to) = value;
}

template <class T>
inline __attribute__((always_inline)) Vector<T> splat(T value) {
  return value - Vector<T>{};
}

constexpr std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

// Other work that multiply_block does in between, piece by piece: none.
struct NothingBeside {
  std::int64_t until(std::int64_t, std::int64_t depth) const { return depth; }
  void step() {}
};

// c[kRows][kColumns] (+)= a * b over `depth`. Element (row, d) of a is a[row*a_stride + d], or with kTransposed
// a[d*a_stride + row]; row d of b is at b + d*b_stride; rows of c are c_stride apart. beside.step() is called in
// between, when `d` has reached beside.until(d, depth).
template <class T, bool kTransposed, class Beside>
inline __attribute__((always_inline)) void multiply_block_beside(const T* a, std::int64_t a_stride, const T* b,
                                                                 std::int64_t b_stride, std::int64_t depth, T* c,
                                                                 std::int64_t c_stride, bool accumulate,
                                                                 Beside& beside) {
  constexpr int kN = kLanes<T>;
  Vector<T> sum[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = accumulate ? load(c + r * c_stride) : Vector<T>{};
    sum[r][1] = accumulate ? load(c + r * c_stride + kN) : Vector<T>{};
  }
  for (std::int64_t d = 0; d < depth;) {
    const std::int64_t until = beside.until(d, depth);
    for (; d < until; ++d) {
      const Vector<T> b0 = load(b), b1 = load(b + kN);
      b += b_stride;
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vector<T> s = splat(kTransposed ? a[r] : a[r * a_stride]);
        sum[r][0] += s * b0;
        sum[r][1] += s * b1;
      }
      a += kTransposed ? a_stride : 1;
    }
    beside.step();
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    store(c + r * c_stride, sum[r][0]);
    store(c + r * c_stride + kN, sum[r][1]);
  }
}

template <class T, bool kTransposed>
void multiply_block(const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, std::int64_t depth, T* c,
                    std::int64_t c_stride, bool accumulate) {
  NothingBeside nothing;
  multiply_block_beside<T, kTransposed>(a, a_stride, b, b_stride, depth, c, c_stride, accumulate, nothing);
}

}  // namespace
}  // namespace centermask
