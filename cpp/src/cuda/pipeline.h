// Threads of a block that work at different paces: barriers in shared memory that count arrivals and bytes (mbarrier),
// copies of whole blocks of memory that report to them, barriers for some of the warps, and kernels that begin before
// the one before them has ended. One instruction to a function, each with a twin for the emulator. All of sm_90.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/mma.h"

#if defined(CENTERMASK_CUDA_EMULATED)
#define CENTERMASK_HAVE_PIPELINE 1
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ >= 12
#define CENTERMASK_HAVE_PIPELINE 1
#else
#define CENTERMASK_HAVE_PIPELINE 0
#endif

namespace centermask::cuda {

// Goes through phases. A phase ends when `count` arrivals have come and as many bytes as were announced in it; waiting
// for phase `parity` (0 for the first, 1, 0, ...) ends when that phase has. What threads wrote before they arrived is
// seen by those that have waited. In shared memory, 8 bytes.
struct alignas(8) Mbarrier {
  std::uint64_t bits;
};

#if defined(CENTERMASK_CUDA_EMULATED)

namespace twin {

struct MbarrierState {
  std::uint16_t pending, count_and_phase;
  std::int32_t bytes;

  static MbarrierState& of(Mbarrier& barrier) { return reinterpret_cast<MbarrierState&>(barrier); }
  void complete() {
    if (pending != 0 || bytes != 0) return;
    count_and_phase ^= 1;
    pending = count_and_phase / 2;
  }
};

}  // namespace twin

inline void mbarrier_init(Mbarrier& barrier, int count) {
  twin::MbarrierState::of(barrier) = {static_cast<std::uint16_t>(count), static_cast<std::uint16_t>(2 * count), 0};
}
inline void mbarrier_publish_init() {}
inline void mbarrier_arrive(Mbarrier& barrier) {
  twin::MbarrierState& state = twin::MbarrierState::of(barrier);
  if (state.pending == 0) emulator::stop("an mbarrier got more arrivals than it counts");
  --state.pending;
  state.complete();
}
inline void mbarrier_arrive_expect(Mbarrier& barrier, int bytes) {
  twin::MbarrierState::of(barrier).bytes += bytes;
  mbarrier_arrive(barrier);
}
inline void mbarrier_wait(Mbarrier& barrier, int parity) {
  const auto phase = [&] { return twin::MbarrierState::of(barrier).count_and_phase % 2; };
  for (bool again = false; phase() == parity; again = true) emulator::poll(again);
}
inline void copy_bulk(void* shared, const void* global, int bytes, Mbarrier& barrier) {
  std::memcpy(shared, global, static_cast<std::size_t>(bytes));
  twin::MbarrierState& state = twin::MbarrierState::of(barrier);
  state.bytes -= bytes;
  state.complete();
}
// Barrier `id` (1 to 15) of `threads` threads of the block, whole warps.
inline void barrier_of(int id, int threads) { emulator::block_barrier(id, threads, false, "barrier_of", 0); }
template <int kRegisters>
inline void give_registers() {}
template <int kRegisters>
inline void take_registers() {}
inline void let_next_kernel_begin() {}
inline void wait_for_kernel_before() {}

#else

__device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, int count) {
#if CENTERMASK_HAVE_PIPELINE
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(count) : "memory");
#endif
}
// After the initialisation of all, before a barrier of the block.
__device__ __forceinline__ void mbarrier_publish_init() {
#if CENTERMASK_HAVE_PIPELINE
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier) {
#if CENTERMASK_HAVE_PIPELINE
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&barrier)) : "memory");
#endif
}
// Arrives, and announces so many bytes.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier& barrier, int bytes) {
#if CENTERMASK_HAVE_PIPELINE
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, int parity) {
#if CENTERMASK_HAVE_PIPELINE
#if defined(CENTERMASK_TUNING)  // kernels that are being tried may wait for ever, which must not stop the card
#define CENTERMASK_WAIT_BOUND "add.u32 count, count, 1;\nsetp.gt.u32 done, count, 1000000;\n@done trap;\n"
#else
#define CENTERMASK_WAIT_BOUND ""
#endif
  asm volatile(
      "{\n.reg .pred done;\n.reg .u32 count;\nmov.u32 count, 0;\nwait_again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra wait_ended;\n" CENTERMASK_WAIT_BOUND
      "bra wait_again;\nwait_ended:\n}\n" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
#undef CENTERMASK_WAIT_BOUND
#endif
}
// From global to shared memory, both 16-byte aligned; by one thread, on its own time. The bytes are counted by the
// barrier.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes, Mbarrier& barrier) {
#if CENTERMASK_HAVE_PIPELINE
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
#endif
}
// Barrier `id` (1 to 15) of `threads` threads of the block, whole warps.
__device__ __forceinline__ void barrier_of(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
// From here on the warpgroup needs no more registers than so many, or needs as many; sm_90a.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
#endif
}
// A kernel launched with launch_early() may begin when all blocks of the one before have called this or ended; what
// that one has written is there after wait_for_kernel_before().
__device__ __forceinline__ void let_next_kernel_begin() {
#if CENTERMASK_HAVE_PIPELINE
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_kernel_before() {
#if CENTERMASK_HAVE_PIPELINE
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

#endif

}  // namespace centermask::cuda
