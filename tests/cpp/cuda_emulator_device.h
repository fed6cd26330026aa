// Atomics, arithmetic and bit intrinsics of the emulated CUDA. Included by cuda_emulator.h.
#pragma once

#include <cstring>
#include <limits>

// ---- atomics: one thread runs at a time, so that plain operations do ----
#define CENTERMASK_EMULATED_ATOMIC(name, T, expression) \
  inline T name(T* address, T value) {                  \
    const T old = *address;                             \
    *address = static_cast<T>(expression);              \
    return old;                                         \
  }
CENTERMASK_EMULATED_ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(value))
CENTERMASK_EMULATED_ATOMIC(atomicAdd, unsigned, old + value)
CENTERMASK_EMULATED_ATOMIC(atomicAdd, unsigned long long, old + value)
CENTERMASK_EMULATED_ATOMIC(atomicAdd, float, old + value)
CENTERMASK_EMULATED_ATOMIC(atomicAdd, double, old + value)
CENTERMASK_EMULATED_ATOMIC(atomicAdd, __half, __float2half(__half2float(old) + __half2float(value)))
CENTERMASK_EMULATED_ATOMIC(atomicAdd, __nv_bfloat16, __float2bfloat16(__bfloat162float(old) + __bfloat162float(value)))
CENTERMASK_EMULATED_ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(value))
CENTERMASK_EMULATED_ATOMIC(atomicSub, unsigned, old - value)
CENTERMASK_EMULATED_ATOMIC(atomicExch, float, value)
#define CENTERMASK_EMULATED_ATOMICS(T)                                \
  CENTERMASK_EMULATED_ATOMIC(atomicMin, T, value < old ? value : old) \
  CENTERMASK_EMULATED_ATOMIC(atomicMax, T, value > old ? value : old) \
  CENTERMASK_EMULATED_ATOMIC(atomicAnd, T, old& value)                \
  CENTERMASK_EMULATED_ATOMIC(atomicOr, T, old | value)                \
  CENTERMASK_EMULATED_ATOMIC(atomicXor, T, old ^ value)               \
  CENTERMASK_EMULATED_ATOMIC(atomicExch, T, value)                    \
  inline T atomicCAS(T* address, T expected, T value) {               \
    const T old = *address;                                           \
    if (old == expected) *address = value;                            \
    return old;                                                       \
  }
CENTERMASK_EMULATED_ATOMICS(int)
CENTERMASK_EMULATED_ATOMICS(unsigned)
CENTERMASK_EMULATED_ATOMICS(long long)
CENTERMASK_EMULATED_ATOMICS(unsigned long long)
CENTERMASK_EMULATED_ATOMICS(unsigned short)  // CUDA has its atomicCAS only
CENTERMASK_EMULATED_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
CENTERMASK_EMULATED_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef CENTERMASK_EMULATED_ATOMICS
#undef CENTERMASK_EMULATED_ATOMIC

inline __half2 atomicAdd(__half2* address, __half2 value) {
  __half* parts = reinterpret_cast<__half*>(address);
  const __half low = atomicAdd(parts, __low2half(value)), high = atomicAdd(parts + 1, __high2half(value));
  return __halves2half2(low, high);
}
inline __nv_bfloat162 atomicAdd(__nv_bfloat162* address, __nv_bfloat162 value) {
  __nv_bfloat16* parts = reinterpret_cast<__nv_bfloat16*>(address);
  const __nv_bfloat16 low = atomicAdd(parts, __low2bfloat16(value)),
                      high = atomicAdd(parts + 1, __high2bfloat16(value));
  return __halves2bfloat162(low, high);
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { centermask::cuda::emulator::stop("__trap()"); }

// ---- loads and stores with cache hints ----
#define CENTERMASK_EMULATED_LOAD(name) \
  template <class T>                   \
  inline T name(const T* address) {    \
    return *address;                   \
  }
CENTERMASK_EMULATED_LOAD(__ldg)
CENTERMASK_EMULATED_LOAD(__ldca)
CENTERMASK_EMULATED_LOAD(__ldcg)
CENTERMASK_EMULATED_LOAD(__ldcs)
CENTERMASK_EMULATED_LOAD(__ldcv)
CENTERMASK_EMULATED_LOAD(__ldlu)
#undef CENTERMASK_EMULATED_LOAD
#define CENTERMASK_EMULATED_STORE(name)   \
  template <class T>                      \
  inline void name(T* address, T value) { \
    *address = value;                     \
  }
CENTERMASK_EMULATED_STORE(__stwb)
CENTERMASK_EMULATED_STORE(__stcg)
CENTERMASK_EMULATED_STORE(__stcs)
CENTERMASK_EMULATED_STORE(__stwt)
#undef CENTERMASK_EMULATED_STORE

// ---- bits ----
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long both = static_cast<unsigned long long>(y) << 32 | x;
  unsigned picked = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned select = selector >> 4 * i & 15u;
    unsigned byte = static_cast<unsigned>(both >> 8 * (select & 7u)) & 255u;
    if ((select & 8u) != 0) byte = (byte & 128u) != 0 ? 255u : 0u;  // the sign, repeated
    picked |= byte << 8 * i;
  }
  return picked;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31u) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31u));
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }

// ---- conversions: nothing is undefined, they saturate, and NaN becomes 0 (GPUs give the 64-bit ones 0x8000...) ----
#define CENTERMASK_EMULATED_BITS(name, To, From) \
  inline To name(From from) {                    \
    To to;                                       \
    std::memcpy(&to, &from, sizeof(to));         \
    return to;                                   \
  }
CENTERMASK_EMULATED_BITS(__float_as_int, int, float)
CENTERMASK_EMULATED_BITS(__float_as_uint, unsigned, float)
CENTERMASK_EMULATED_BITS(__int_as_float, float, int)
CENTERMASK_EMULATED_BITS(__uint_as_float, float, unsigned)
CENTERMASK_EMULATED_BITS(__double_as_longlong, long long, double)
CENTERMASK_EMULATED_BITS(__longlong_as_double, double, long long)
#undef CENTERMASK_EMULATED_BITS

namespace centermask::cuda::emulator {

template <class To, class From>
To saturated(From value) {
  if (!(value == value)) return sizeof(To) == 8 ? static_cast<To>(To(1) << 63) : To(0);
  if (value <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (value >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(value);
}

}  // namespace centermask::cuda::emulator

#define CENTERMASK_EMULATED_ROUND(prefix, To, From)                                                                \
  inline To prefix##_rd(From x) { return centermask::cuda::emulator::saturated<To>(static_cast<From>(floor(x))); } \
  inline To prefix##_ru(From x) { return centermask::cuda::emulator::saturated<To>(static_cast<From>(ceil(x))); }  \
  inline To prefix##_rz(From x) { return centermask::cuda::emulator::saturated<To>(static_cast<From>(trunc(x))); } \
  inline To prefix##_rn(From x) { return centermask::cuda::emulator::saturated<To>(static_cast<From>(rint(x))); }
CENTERMASK_EMULATED_ROUND(__float2int, int, float)
CENTERMASK_EMULATED_ROUND(__float2uint, unsigned, float)
CENTERMASK_EMULATED_ROUND(__float2ll, long long, float)
CENTERMASK_EMULATED_ROUND(__float2ull, unsigned long long, float)
CENTERMASK_EMULATED_ROUND(__double2int, int, double)
CENTERMASK_EMULATED_ROUND(__double2uint, unsigned, double)
CENTERMASK_EMULATED_ROUND(__double2ll, long long, double)
#undef CENTERMASK_EMULATED_ROUND
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return static_cast<double>(x); }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

// ---- arithmetic. The fast functions are exact here. ----
#define CENTERMASK_EMULATED_MINMAX(A, B, T)                                                                        \
  inline T min(A a, B b) { return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); } \
  inline T max(A a, B b) { return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); }
CENTERMASK_EMULATED_MINMAX(int, int, int)
CENTERMASK_EMULATED_MINMAX(unsigned, unsigned, unsigned)
CENTERMASK_EMULATED_MINMAX(int, unsigned, unsigned)
CENTERMASK_EMULATED_MINMAX(unsigned, int, unsigned)
CENTERMASK_EMULATED_MINMAX(long, long, long)
CENTERMASK_EMULATED_MINMAX(unsigned long, unsigned long, unsigned long)
CENTERMASK_EMULATED_MINMAX(long long, long long, long long)
CENTERMASK_EMULATED_MINMAX(unsigned long long, unsigned long long, unsigned long long)
#undef CENTERMASK_EMULATED_MINMAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(static_cast<double>(a), b); }
inline double max(float a, double b) { return fmax(static_cast<double>(a), b); }
inline double min(double a, float b) { return fmin(a, static_cast<double>(b)); }
inline double max(double a, float b) { return fmax(a, static_cast<double>(b)); }

inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
// The C library declares these names, and does not define them.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)

// What cuda_fp16.h and cuda_bf16.h have for the device only.
inline __half __hfma(__half a, __half b, __half c) {
  return __double2half(fma(__half2float(a), __half2float(b), static_cast<double>(__half2float(c))));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                        __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __double2bfloat16(fma(__bfloat162float(a), __bfloat162float(b), static_cast<double>(__bfloat162float(c))));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                            __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
