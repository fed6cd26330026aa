// Tensor cores and asynchronous copies: inline PTX, one instruction to a function, each with a twin for the emulator.
//
// The layout of fragments, for lane = 4*g + t of a warp (PTX ISA, "Matrix fragments for mma"). A 32-bit register holds
// two neighbouring elements of k in half precision, or one in tf32, so that in bytes the layouts are the same:
//   a[0] row g,   bytes 4t.. of the 32 of k      a[1] row g+8, the same bytes
//   a[2] row g,   bytes 16+4t..                  a[3] row g+8, bytes 16+4t..
//   b[0] column g, bytes 4t..                    b[1] column g, bytes 16+4t..
//   c[0], c[1] row g, columns 2t, 2t+1           c[2], c[3] row g+8
// The order of k does not matter as long as a and b agree: whoever packs both may take any.
//
// mma and asynchronous copies need sm_80 (below it mma traps: the host must not choose such kernels, and the copies are
// plain ones); ldmatrix needs sm_75.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/runtime.h"

#if defined(CENTERMASK_CUDA_EMULATED)
#define CENTERMASK_HAVE_MMA 1
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define CENTERMASK_HAVE_MMA 1
#else
#define CENTERMASK_HAVE_MMA 0
#endif

namespace centermask::cuda {

// The value, such that what follows from it is computed where it is used and not before the loop around: for what is
// needed seldom, and would hold registers all the time.
__device__ __forceinline__ unsigned computed_here(unsigned value) {
#if !defined(CENTERMASK_CUDA_EMULATED)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

__device__ __forceinline__ std::int64_t computed_here(std::int64_t value) {
#if !defined(CENTERMASK_CUDA_EMULATED)
  long long bits = value;
  asm volatile("" : "+l"(bits));
  return bits;
#else
  return value;
#endif
}

#if defined(CENTERMASK_CUDA_EMULATED)

namespace twin {

struct MmaOperands {
  std::uint32_t a[4], b[2];
};

// `kPerRegister` elements of k in a register; decode(register, which) is one of them as a float.
template <int kPerRegister, class Decode>
void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const char* name, Decode decode) {
  const MmaOperands mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto lanes = emulator::warp_exchange(0xffffffffu, mine, name);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    double sum = 0;
    for (int k = 0; k < 8; ++k) {  // registers along k
      const std::uint32_t left = lanes[4 * g + k % 4].a[(k / 4) * 2 + i / 2];
      const std::uint32_t right = lanes[4 * (2 * t + i % 2) + k % 4].b[k / 4];
      for (int e = 0; e < kPerRegister; ++e) {
        sum += static_cast<double>(decode(left, e)) * static_cast<double>(decode(right, e));
      }
    }
    c[i] = static_cast<float>(static_cast<double>(c[i]) + sum);
  }
}

inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct RowAddress {
  const void* row;
};

}  // namespace twin

inline void mma_m16n8k16_f16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  twin::mma<2>(c, a, b, "mma.m16n8k16.f16", [](std::uint32_t bits, int e) {
    __half value;
    const std::uint16_t half = static_cast<std::uint16_t>(bits >> (16 * e));
    std::memcpy(static_cast<void*>(&value), &half, sizeof value);
    return __half2float(value);
  });
}

inline void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  twin::mma<2>(c, a, b, "mma.m16n8k16.bf16",
               [](std::uint32_t bits, int e) { return twin::bits_to_float(e == 0 ? bits << 16 : bits & 0xffff0000u); });
}

// The hardware looks at the upper 19 bits of a register.
inline void mma_m16n8k8_tf32(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  twin::mma<1>(c, a, b, "mma.m16n8k8.tf32",
               [](std::uint32_t bits, int) { return twin::bits_to_float(bits & 0xffffe000u); });
}

inline std::uint32_t to_tf32(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;  // to nearest, ties away from zero
  return bits & 0xffffe000u;
}

inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  const twin::RowAddress mine = {row};
  const auto lanes = emulator::warp_exchange(0xffffffffu, mine, "ldmatrix.x4");
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], static_cast<const char*>(lanes[8 * i + g].row) + 4 * t, 4);
}

inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  const twin::RowAddress mine = {row};
  const auto lanes = emulator::warp_exchange(0xffffffffu, mine, "ldmatrix.x4.trans");
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    std::uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      std::memcpy(&pair[e], static_cast<const char*>(lanes[8 * i + 2 * t + e].row) + 2 * g, 2);
    }
    std::memcpy(&r[i], pair, 4);
  }
}

template <bool kTurned>
inline void stmatrix_x4(void* row, const std::uint32_t (&r)[4]) {
  const twin::RowAddress mine = {row};
  const auto lanes = emulator::warp_exchange(0xffffffffu, mine, "stmatrix.x4");
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const auto at = [&](int which) { return static_cast<char*>(const_cast<void*>(lanes[8 * i + which].row)); };
    const std::uint16_t pair[2] = {static_cast<std::uint16_t>(r[i]), static_cast<std::uint16_t>(r[i] >> 16)};
    for (int e = 0; e < 2; ++e) std::memcpy(kTurned ? at(2 * t + e) + 2 * g : at(g) + 4 * t + 2 * e, &pair[e], 2);
  }
}

inline float4 load_shared(const float4* shared) { return *shared; }
inline uint4 load_shared(const uint4* shared) { return *shared; }
inline uint4 load_global(const void* global) { return *static_cast<const uint4*>(global); }
inline void store_shared_or_zero(void* shared, const uint4& value, bool present) {
  *static_cast<uint4*>(shared) = present ? value : make_uint4(0, 0, 0, 0);
}

inline void cp_async_16(void* shared, const void* global) { std::memcpy(shared, global, 16); }
inline void cp_async_16_or_zero(void* shared, const void* global, bool present) {
  if (present) {
    std::memcpy(shared, global, 16);
  } else {
    std::memset(shared, 0, 16);
  }
}
inline void cp_async_commit() {}
template <int kPending>
inline void cp_async_wait() {}

#else

// c += a * b, 16 x 8 x 16, sums in float.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&c)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
#if CENTERMASK_HAVE_MMA
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4],
                                                  const std::uint32_t (&b)[2]) {
#if CENTERMASK_HAVE_MMA
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// 16 x 8 x 8. The operands are floats whose lower 13 bits are not looked at: round them with to_tf32 first.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
#if CENTERMASK_HAVE_MMA
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// To the nearest tf32, ties away from zero.
__device__ __forceinline__ std::uint32_t to_tf32(float value) {
#if CENTERMASK_HAVE_MMA
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
#else
  return __float_as_uint(value);
#endif
}

__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of 16-bit elements: lane 8*i + r gives the address (16-byte aligned, in shared memory) of row r
// of matrix i; register i is what lane 4*g + t gets of matrix i: row g, bytes 4t..4t+3.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  __trap();
#endif
}

// The same, each matrix transposed: lane 4*g + t gets rows 2t and 2t+1 of column g.
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  __trap();
#endif
}

// The way back (sm_90): register i of lane 4*g + t goes to row g of matrix i, bytes 4t..4t+3; or, kTurned, to column g
// of rows 2t and 2t+1.
template <bool kTurned>
__device__ __forceinline__ void stmatrix_x4(void* row, const std::uint32_t (&r)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (kTurned) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  }
#else
  __trap();
#endif
}

// One load, where the compiler might make four.
__device__ __forceinline__ float4 load_shared(const float4* shared) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(shared_address(shared)));
  return value;
}

__device__ __forceinline__ uint4 load_shared(const uint4* shared) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(shared_address(shared)));
  return value;
}

// One store, or another one of zeros, where the compiler would choose word by word.
__device__ __forceinline__ void store_shared_or_zero(void* shared, const uint4& value, bool present) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n"
      "@!p st.shared.v4.u32 [%0], {%6, %6, %6, %6};\n}\n" ::"r"(shared_address(shared)),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(present ? 1 : 0), "r"(0)
      : "memory");
}

// 16 aligned bytes of global memory; unlike __ldg, never moved across a barrier.
__device__ __forceinline__ uint4 load_global(const void* global) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(global)
               : "memory");
  return value;
}

// 16 bytes from global to shared memory, past the L1 cache; both 16-byte aligned.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
#if CENTERMASK_HAVE_MMA
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// The same where `present`, else 16 zero bytes; `global` must be an address of global memory, but is not read then.
__device__ __forceinline__ void cp_async_16_or_zero(void* shared, const void* global, bool present) {
#if CENTERMASK_HAVE_MMA
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(present ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = present ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

// Ends a batch of copies; cp_async_wait<n> waits until at most n batches of this thread are under way. A barrier after
// it makes the copies seen by the block.
__device__ __forceinline__ void cp_async_commit() {
#if CENTERMASK_HAVE_MMA
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if CENTERMASK_HAVE_MMA
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

#endif

}  // namespace centermask::cuda
