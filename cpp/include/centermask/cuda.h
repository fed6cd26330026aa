// Where CUDA work goes. The *_cuda functions are in the library only where it was built with CENTERMASK_CUDA=ON.
//
// All of them enqueue on the caller's stream and return without waiting; they allocate nothing, never synchronise and
// can be captured in a CUDA graph. Every launch is checked; a failed one throws Error(kRuntime).
#pragma once

namespace centermask {

struct CudaStream {
  void* handle = nullptr;  // cudaStream_t; null is the legacy default stream
  int device = 0;          // the ordinal that the stream and all the tensors belong to
};

}  // namespace centermask
