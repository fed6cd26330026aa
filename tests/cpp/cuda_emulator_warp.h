// Warp intrinsics of the emulated CUDA. Included by cuda_emulator.h.
#pragma once

#include <cstring>
#include <type_traits>

namespace centermask::cuda::emulator {

// What each lane brought to a warp_exchange(). A lane that had returned, or is not in the mask, has brought 0xFF bytes.
template <class T>
class WarpValues {
 public:
  explicit WarpValues(const WarpMeeting& meeting) : meeting_(&meeting) {}
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, meeting_->slots[lane], sizeof(T));
    return value;
  }
  bool arrived(int lane) const { return (meeting_->arrived >> lane & 1u) != 0; }
  unsigned arrived() const { return meeting_->arrived; }

 private:
  const WarpMeeting* meeting_;
};

// The way to write the host's twin of an inline PTX instruction of a whole warp: every lane of `mask` brings a value
// (at most 64 bytes), and gets to read all of them. All lanes must bring the same `name`.
//     auto lanes = emulator::warp_exchange(0xffffffffu, fragments, "mma.m16n8k16");
//     ... lanes[i].a[0] ...
template <class T>
WarpValues<T> warp_exchange(unsigned mask, const T& mine, const char* name) {
  static_assert(sizeof(T) <= kWarpSlotBytes && std::is_trivially_copyable<T>::value, "brings up to 64 plain bytes");
  return WarpValues<T>(warp_meet(mask, &mine, sizeof(T), name));
}

}  // namespace centermask::cuda::emulator

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  centermask::cuda::emulator::warp_meet(mask, nullptr, 0, "__syncwarp");
}

// `source` is a lane of the warp; the lanes outside [start of the segment, end) give the lane's own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  namespace emulator = centermask::cuda::emulator;
  const auto lanes = emulator::warp_exchange(mask, value, "__shfl_sync");
  return lanes[(emulator::lane() & ~(width - 1)) | (source & (width - 1))];
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  namespace emulator = centermask::cuda::emulator;
  const auto lanes = emulator::warp_exchange(mask, value, "__shfl_up_sync");
  const int lane = emulator::lane(), source = lane - static_cast<int>(delta);
  return lanes[source < (lane & ~(width - 1)) ? lane : source];
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  namespace emulator = centermask::cuda::emulator;
  const auto lanes = emulator::warp_exchange(mask, value, "__shfl_down_sync");
  const int lane = emulator::lane(), source = lane + static_cast<int>(delta);
  return lanes[source > (lane | (width - 1)) ? lane : source];
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  namespace emulator = centermask::cuda::emulator;
  const auto lanes = emulator::warp_exchange(mask, value, "__shfl_xor_sync");
  const int lane = emulator::lane(), source = lane ^ lane_mask;
  return lanes[source > (lane | (width - 1)) ? lane : source];
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto lanes = centermask::cuda::emulator::warp_exchange(mask, predicate, "__ballot_sync");
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) {
    if (lanes.arrived(i) && lanes[i] != 0) ballot |= 1u << i;
  }
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const auto lanes = centermask::cuda::emulator::warp_exchange(mask, value, "__match_any_sync");
  unsigned same = 0;
  for (int i = 0; i < 32; ++i) {
    const T other = lanes[i];
    if (lanes.arrived(i) && std::memcmp(&other, &value, sizeof(T)) == 0) same |= 1u << i;
  }
  return same;
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all) {
  const auto lanes = centermask::cuda::emulator::warp_exchange(mask, value, "__match_all_sync");
  for (int i = 0; i < 32; ++i) {
    const T other = lanes[i];
    if (lanes.arrived(i) && std::memcmp(&other, &value, sizeof(T)) != 0) return static_cast<unsigned>(*all = 0);
  }
  *all = 1;
  return lanes.arrived();
}

namespace centermask::cuda::emulator {

template <class T, class Combine>
T warp_reduce(unsigned mask, T value, const char* name, Combine combine) {
  const auto lanes = warp_exchange(mask, value, name);
  bool first = true;
  T sum = value;
  for (int i = 0; i < 32; ++i) {
    if (!lanes.arrived(i)) continue;
    sum = first ? lanes[i] : combine(sum, lanes[i]);
    first = false;
  }
  return sum;
}

}  // namespace centermask::cuda::emulator

// The instructions are of sm_80 and take 32-bit integers.
#define CENTERMASK_EMULATED_REDUCE(name, T, expression)                                                           \
  inline T name(unsigned mask, T value) {                                                                         \
    return centermask::cuda::emulator::warp_reduce(mask, value, #name, [](T a, T b) -> T { return expression; }); \
  }
CENTERMASK_EMULATED_REDUCE(__reduce_add_sync, unsigned, a + b)
CENTERMASK_EMULATED_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
CENTERMASK_EMULATED_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
CENTERMASK_EMULATED_REDUCE(__reduce_add_sync, int,
                           static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
CENTERMASK_EMULATED_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CENTERMASK_EMULATED_REDUCE(__reduce_max_sync, int, a > b ? a : b)
CENTERMASK_EMULATED_REDUCE(__reduce_and_sync, unsigned, a& b)
CENTERMASK_EMULATED_REDUCE(__reduce_or_sync, unsigned, a | b)
CENTERMASK_EMULATED_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef CENTERMASK_EMULATED_REDUCE
