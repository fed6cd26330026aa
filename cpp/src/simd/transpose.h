// Transposing in registers, on top of vector.h and with the same rules.
#pragma once

#include <cstdint>

#include "simd/vector.h"

#if defined(__clang__)
#define CENTERMASK_SHUFFLE(Int, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CENTERMASK_SHUFFLE(Int, a, b, ...) __builtin_shuffle(a, b, Int{__VA_ARGS__})
#endif

namespace centermask {
namespace {

// Lane of the pair (a, b) that goes to `lane`, when blocks of kStep lanes are exchanged: the low result takes the even
// blocks of a and b, the high result the odd ones.
template <int kStep, int kN>
constexpr int low_lane(int lane) {
  return (lane & kStep) != 0 ? kN + lane - kStep : lane;
}
template <int kStep, int kN>
constexpr int high_lane(int lane) {
  return (lane & kStep) != 0 ? kN + lane : lane + kStep;
}

template <class T, int kStep>
inline __attribute__((always_inline)) void exchange(Vector<T> a, Vector<T> b, Vector<T>& low, Vector<T>& high) {
  using Int [[maybe_unused]] = Integers<T>;
  constexpr int kN = kLanes<T>;
#define CENTERMASK_LOW(i) low_lane<kStep, kN>(i)
#define CENTERMASK_HIGH(i) high_lane<kStep, kN>(i)
#define CENTERMASK_LANES2(f) f(0), f(1)
#define CENTERMASK_LANES4(f) CENTERMASK_LANES2(f), f(2), f(3)
#define CENTERMASK_LANES8(f) CENTERMASK_LANES4(f), f(4), f(5), f(6), f(7)
#define CENTERMASK_LANES16(f) CENTERMASK_LANES8(f), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
  if constexpr (kN == 2) {
    low = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES2(CENTERMASK_LOW));
    high = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES2(CENTERMASK_HIGH));
  } else if constexpr (kN == 4) {
    low = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES4(CENTERMASK_LOW));
    high = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES4(CENTERMASK_HIGH));
  } else if constexpr (kN == 8) {
    low = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES8(CENTERMASK_LOW));
    high = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES8(CENTERMASK_HIGH));
  } else {
    static_assert(kN == 16, "vectors have 2, 4, 8 or 16 lanes");
    low = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES16(CENTERMASK_LOW));
    high = CENTERMASK_SHUFFLE(Int, a, b, CENTERMASK_LANES16(CENTERMASK_HIGH));
  }
#undef CENTERMASK_LOW
#undef CENTERMASK_HIGH
#undef CENTERMASK_LANES2
#undef CENTERMASK_LANES4
#undef CENTERMASK_LANES8
#undef CENTERMASK_LANES16
}

template <class T, int kStep = 1>
inline __attribute__((always_inline)) void transpose_square(Vector<T> (&v)[kLanes<T>]) {
  if constexpr (kStep < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & kStep) == 0) exchange<T, kStep>(v[i], v[i + kStep], v[i], v[i + kStep]);
    }
    transpose_square<T, kStep * 2>(v);
  }
}

// Lane i of the result is the sum over the lanes of v[i]. Destroys v.
template <class T, int kStep = 1>
inline __attribute__((always_inline)) Vector<T> sum_each(Vector<T> (&v)[kLanes<T>]) {
  if constexpr (kStep < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T> / kStep; i += 2) {
      Vector<T> low, high;
      exchange<T, kStep>(v[i], v[i + 1], low, high);
      v[i / 2] = low + high;
    }
    return sum_each<T, kStep * 2>(v);
  } else {
    return v[0];
  }
}

// to[c*to_stride + r] = from[r*from_stride + c] for r < rows, c < columns.
template <class T>
void transpose(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, T* to,
               std::int64_t to_stride) {
  constexpr int kN = kLanes<T>;
  std::int64_t r = 0;
  for (; r + kN <= rows; r += kN) {
    std::int64_t c = 0;
    for (; c + kN <= columns; c += kN) {
      Vector<T> v[kN];
#pragma GCC unroll 16
      for (int i = 0; i < kN; ++i) v[i] = load(from + (r + i) * from_stride + c);
      transpose_square<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < kN; ++i) store(to + (c + i) * to_stride + r, v[i]);
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < kN; ++i) to[c * to_stride + r + i] = from[(r + i) * from_stride + c];
    }
  }
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t i = r; i < rows; ++i) to[c * to_stride + i] = from[i * from_stride + c];
  }
}

// Channels [0, channels) of a row of pixels that are `step` apart, to channels-last pixels `to_stride` apart.
template <class T>
void to_channels_last(const T* from, std::int64_t channel_stride, std::int64_t step, std::int64_t channels,
                      std::int64_t count, T* to, std::int64_t to_stride) {
  if (step == 1) {
    transpose(from, channel_stride, channels, count, to, to_stride);
    return;
  }
  for (std::int64_t p = 0; p < count; ++p) {
    for (std::int64_t c = 0; c < channels; ++c) to[p * to_stride + c] = from[p * step + c * channel_stride];
  }
}

}  // namespace
}  // namespace centermask
