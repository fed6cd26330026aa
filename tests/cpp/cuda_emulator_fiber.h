// Switching between stacks, for cuda_emulator.cc: on x86-64 a dozen instructions, elsewhere ucontext.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define CENTERMASK_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CENTERMASK_EMULATOR_ASAN 1
#endif
#endif
#if defined(CENTERMASK_EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
extern "C" void centermask_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl centermask_switch_stack
.hidden centermask_switch_stack
.type centermask_switch_stack, @function
centermask_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size centermask_switch_stack, .-centermask_switch_stack
)");
#endif

namespace centermask::cuda::emulator {

// A stack and where its owner left it. A default-made one is the system thread's own.
class Fiber {
 public:
  Fiber() = default;
  // `entry` must not return.
  void create(void* stack, std::size_t bytes, void (*entry)()) {
    stack_ = stack;
    bytes_ = bytes;
#if defined(CENTERMASK_EMULATOR_ASAN)
    __asan_unpoison_memory_region(stack, bytes);
    fake_stack_ = nullptr;
#endif
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(static_cast<unsigned char*>(stack) + bytes);
    *--top = nullptr;  // where entry would return to: aligns the stack as a call does
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // From the running fiber, which is this one, to another.
  void switch_to(Fiber& other) {
#if defined(CENTERMASK_EMULATOR_ASAN)
    __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.bytes_);
#endif
#if defined(__x86_64__)
    centermask_switch_stack(&pointer_, other.pointer_);
#else
    swapcontext(&context_, &other.context_);
#endif
#if defined(CENTERMASK_EMULATOR_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  // The first thing that an entry does. `from` is who switched here.
  void entered([[maybe_unused]] Fiber& from) {
#if defined(CENTERMASK_EMULATOR_ASAN)
    const void* stack = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &stack, &bytes);
    from.stack_ = const_cast<void*>(stack);
    from.bytes_ = bytes;
#endif
  }

 private:
  void* stack_ = nullptr;
  std::size_t bytes_ = 0;
#if defined(__x86_64__)
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
#if defined(CENTERMASK_EMULATOR_ASAN)
  void* fake_stack_ = nullptr;
#endif
};

// Memory between pages that nobody may touch.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t bytes) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    bytes_ = (bytes + page - 1) / page * page;
    all_ = bytes_ + 2 * page;
    void* memory = mmap(nullptr, all_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(memory);
    data_ = base_ + page;
    if (mprotect(data_, bytes_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
  ~GuardedMemory() { munmap(base_, all_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  unsigned char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_ = nullptr;
  unsigned char* data_ = nullptr;
  std::size_t bytes_ = 0, all_ = 0;
};

}  // namespace centermask::cuda::emulator
