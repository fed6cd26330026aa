// Which instruction set the CPU kernels use. Every kernel is compiled for each of these; the choice is made at each
// call.
#pragma once

namespace centermask {

// The order is that of preference. kBaseline is plain x86-64 (SSE2), or NEON on aarch64.
enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

inline constexpr int kIsaCount = 3;

const char* isa_name(Isa isa);  // "baseline", "avx2", "avx512": the values of CENTERMASK_ISA

// Compiled in, and the processor (with its operating system) runs it.
bool isa_available(Isa isa);

// The best one that is available, or what the environment variable CENTERMASK_ISA names.
// Throws Error(kValue) when that is no name or not available here.
Isa isa_used();

}  // namespace centermask
