#include "centermask/isa.h"

#include <cstdlib>
#include <cstring>

#include "centermask/error.h"

namespace centermask {

namespace {

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  // __builtin_cpu_supports asks the operating system too (whether it saves the wide registers).
  if (isa == Isa::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
  if (isa == Isa::kAvx512) {
    return processor_has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::kBaseline;
}

bool compiled(Isa isa) {
#if !defined(CENTERMASK_HAVE_AVX2)
  if (isa == Isa::kAvx2) return false;
#endif
#if !defined(CENTERMASK_HAVE_AVX512)
  if (isa == Isa::kAvx512) return false;
#endif
  static_cast<void>(isa);
  return true;
}

Isa best_isa() {
  static const Isa best = [] {
    for (Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
      if (isa_available(isa)) return isa;
    }
    return Isa::kBaseline;
  }();
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    case Isa::kBaseline: break;
  }
  return "baseline";
}

bool isa_available(Isa isa) { return compiled(isa) && processor_has(isa); }

Isa isa_used() {
  const char* wanted = std::getenv("CENTERMASK_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_isa();
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
    if (!isa_available(isa)) fail(ErrorKind::kValue, "CENTERMASK_ISA: ", wanted, " is not available on this machine");
    return isa;
  }
  fail(ErrorKind::kValue, "CENTERMASK_ISA must be baseline, avx2 or avx512, got ", wanted);
}

}  // namespace centermask
