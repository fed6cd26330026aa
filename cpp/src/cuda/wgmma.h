// Hopper's matrix products of a warpgroup (4 warps), with both operands in shared memory: needs sm_90a, that is, code
// made for Hopper alone (CENTERMASK_SM90A tells the host that there is some), and CUDA 12.
//
// Operands are rows of 128 bytes of K, each row's eight 16-byte vectors exchanged by the row's number (the layout that
// the PTX ISA calls the 128-byte swizzle, K-major): vector v of row r is at 128*r + 16*(v ^ r%8) from an address that
// is a multiple of 1024. So the 8 threads that write a row meet all banks. wgmma runs on its own: fence, issue, commit;
// wait before its operands are overwritten or its sums are read. What threads have written to shared memory is seen by
// it after publish_to_async() in the writers and a barrier.
#pragma once

#include "cuda/mma.h"

#if defined(CENTERMASK_CUDA_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CENTERMASK_HAVE_WGMMA 1
#else
#define CENTERMASK_HAVE_WGMMA 0
#endif

namespace centermask::cuda {

constexpr int kSwizzleAlign = 1024;

__device__ __forceinline__ int swizzled(int row, int vector) { return row * 128 + ((vector ^ (row % 8)) * 16); }

#if defined(CENTERMASK_CUDA_EMULATED)

namespace twin {

// d += a * b (without `add` d = a * b): 64 rows of a and 8 * kTiles of b, `k`: which 32 bytes of the rows.
template <class T, int kTiles, class Decode>
void wgmma(float (&d)[kTiles][4], const void* a, const void* b, int k, bool add, Decode decode) {
  const int thread = static_cast<int>(threadIdx.x % 128), lane = thread % 32;
  const auto element = [&](const void* operand, int row, int i) {
    const int byte = 32 * k + i * static_cast<int>(sizeof(T));
    T value;
    std::memcpy(static_cast<void*>(&value), static_cast<const char*>(operand) + swizzled(row, byte / 16) + byte % 16,
                sizeof value);
    return static_cast<double>(decode(value));
  };
  for (int j = 0; j < kTiles; ++j) {
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 32 * 16 + lane / 4 + i / 2 * 8, column = j * 8 + lane % 4 * 2 + i % 2;
      double sum = add ? static_cast<double>(d[j][i]) : 0.0;
      for (int e = 0; e < 32 / static_cast<int>(sizeof(T)); ++e) sum += element(a, row, e) * element(b, column, e);
      d[j][i] = static_cast<float>(sum);
    }
  }
}

}  // namespace twin

template <int kTiles>
void wgmma_f16(float (&d)[kTiles][4], const void* a, const void* b, int k, bool add = true) {
  twin::wgmma<__half>(d, a, b, k, add, [](__half value) { return __half2float(value); });
}
template <int kTiles>
void wgmma_bf16(float (&d)[kTiles][4], const void* a, const void* b, int k, bool add = true) {
  twin::wgmma<__nv_bfloat16>(d, a, b, k, add, [](__nv_bfloat16 value) { return __bfloat162float(value); });
}
template <int kTiles>
void wgmma_tf32(float (&d)[kTiles][4], const void* a, const void* b, int k, bool add = true) {
  twin::wgmma<std::uint32_t>(d, a, b, k, add,
                             [](std::uint32_t bits) { return twin::bits_to_float(bits & 0xffffe000u); });
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kPending = 0>
inline void wgmma_wait() {
  emulator::warp_meet(0xffffffffu, nullptr, 0, "wgmma.wait_group");
}
inline void publish_to_async() {}
inline unsigned char* align_for_swizzle(unsigned char* shared) {
  return shared + (kSwizzleAlign - reinterpret_cast<std::uintptr_t>(shared) % kSwizzleAlign) % kSwizzleAlign;
}

#else

// The descriptor of an operand's rows: 8 rows are 1024 bytes, 128-byte swizzle.
__device__ __forceinline__ std::uint64_t wgmma_operand(const void* shared, int k) {
  const std::uint64_t address = (shared_address(shared) + 32 * k) >> 4 & 0x3fff;
  return address | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

#if CENTERMASK_HAVE_WGMMA
#define CENTERMASK_WGMMA(n, types, immediates, registers, operands, added, ...)                            \
  const std::uint64_t left = wgmma_operand(a, k), right = wgmma_operand(b, k);                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " added ", 0;\nwgmma.mma_async.sync.aligned.m64n" n types \
               " {" registers "}, " operands ", p, 1, 1" immediates ";\n}\n"                               \
               : __VA_ARGS__                                                                               \
               : "l"(left), "l"(right), "r"(add ? 1 : 0))
#define CENTERMASK_WGMMA_LOW                                                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define CENTERMASK_WGMMA_HIGH                                                                                        \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CENTERMASK_WGMMA_4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define CENTERMASK_WGMMA_32(j)                                                                            \
  CENTERMASK_WGMMA_4(j), CENTERMASK_WGMMA_4(j + 1), CENTERMASK_WGMMA_4(j + 2), CENTERMASK_WGMMA_4(j + 3), \
      CENTERMASK_WGMMA_4(j + 4), CENTERMASK_WGMMA_4(j + 5), CENTERMASK_WGMMA_4(j + 6), CENTERMASK_WGMMA_4(j + 7)
#define CENTERMASK_WGMMA_128(types, immediates)                                                             \
  CENTERMASK_WGMMA("128", types, immediates, CENTERMASK_WGMMA_LOW CENTERMASK_WGMMA_HIGH, "%64, %65", "%66", \
                   CENTERMASK_WGMMA_32(0), CENTERMASK_WGMMA_32(8))
#define CENTERMASK_WGMMA_64(types, immediates) \
  CENTERMASK_WGMMA("64", types, immediates, CENTERMASK_WGMMA_LOW, "%32, %33", "%34", CENTERMASK_WGMMA_32(0))
#else
#define CENTERMASK_WGMMA_128(types, immediates) __trap()
#define CENTERMASK_WGMMA_64(types, immediates) __trap()
#endif

// d += a * b for 64 rows of a and 128 (or 64) of b, over 32 bytes of K, the k-th of the 128. Lane 4*g + t of warp w has
// rows 16*w + g (d[j][0], d[j][1]) and g + 8, and of columns 8*j + 2*t and the next.
__device__ __forceinline__ void wgmma_f16(float (&d)[16][4], const void* a, const void* b, int k, bool add = true) {
  CENTERMASK_WGMMA_128("k16.f32.f16.f16", ", 0, 0");
}
__device__ __forceinline__ void wgmma_f16(float (&d)[8][4], const void* a, const void* b, int k, bool add = true) {
  CENTERMASK_WGMMA_64("k16.f32.f16.f16", ", 0, 0");
}
__device__ __forceinline__ void wgmma_bf16(float (&d)[16][4], const void* a, const void* b, int k, bool add = true) {
  CENTERMASK_WGMMA_128("k16.f32.bf16.bf16", ", 0, 0");
}
__device__ __forceinline__ void wgmma_bf16(float (&d)[8][4], const void* a, const void* b, int k, bool add = true) {
  CENTERMASK_WGMMA_64("k16.f32.bf16.bf16", ", 0, 0");
}
__device__ __forceinline__ void wgmma_tf32(float (&d)[16][4], const void* a, const void* b, int k, bool add = true) {
  CENTERMASK_WGMMA_128("k8.f32.tf32.tf32", "");
}
__device__ __forceinline__ void wgmma_tf32(float (&d)[8][4], const void* a, const void* b, int k, bool add = true) {
  CENTERMASK_WGMMA_64("k8.f32.tf32.tf32", "");
}

#undef CENTERMASK_WGMMA
#undef CENTERMASK_WGMMA_LOW
#undef CENTERMASK_WGMMA_HIGH
#undef CENTERMASK_WGMMA_4
#undef CENTERMASK_WGMMA_32
#undef CENTERMASK_WGMMA_64
#undef CENTERMASK_WGMMA_128

__device__ __forceinline__ void wgmma_fence() {
#if CENTERMASK_HAVE_WGMMA
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#if CENTERMASK_HAVE_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}
// Until at most so many of the committed groups of products are not done.
template <int kPending = 0>
__device__ __forceinline__ void wgmma_wait() {
#if CENTERMASK_HAVE_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
#endif
}
__device__ __forceinline__ void publish_to_async() {
#if CENTERMASK_HAVE_WGMMA
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}
__device__ __forceinline__ unsigned char* align_for_swizzle(unsigned char* shared) {
  return shared + (kSwizzleAlign - shared_address(shared) % kSwizzleAlign) % kSwizzleAlign;
}

#endif

}  // namespace centermask::cuda
