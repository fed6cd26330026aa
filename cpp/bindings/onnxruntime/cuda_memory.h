// Scratch memory on the device, for builds with CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "centermask/cuda.h"
#include "centermask/workspace.h"

namespace centermask::ort {

// Memory for work that is put on a stream while this object lives. Streams run in order, so that each has one piece for
// all operators and sessions, which grows when needed (and then waits for the device, as freeing memory does) and is
// kept for the next run. The runtime's own arena is no help here: it gives back memory that a stream still uses to
// another one. Throws Error(kRuntime).
class StreamMemory {
 public:
  StreamMemory(const CudaStream& stream, std::size_t bytes);
  ~StreamMemory();
  Workspace workspace() const { return workspace_; }

  struct Piece;

 private:
  std::shared_ptr<Piece> piece_;
  std::unique_lock<std::mutex> lock_;
  Workspace workspace_;
};

// Copies bytes on a stream. To the host it waits until they are there.
void copy_to_host(const CudaStream& stream, void* host, const void* device, std::size_t bytes);
void copy_to_device(const CudaStream& stream, void* device, const void* host, std::size_t bytes);

}  // namespace centermask::ort
