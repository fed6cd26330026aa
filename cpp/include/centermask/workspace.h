// Scratch memory for one call: the caller owns it, the core never allocates.
#pragma once

#include <cstddef>

namespace centermask {

// Any alignment will do on the CPU; on CUDA 256 bytes, which every allocator there gives.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

}  // namespace centermask
