#include <cuda_runtime.h>

#include <algorithm>
#include <list>

#include "centermask/error.h"
#include "cuda_memory.h"

namespace centermask::ort {

namespace {

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error of this call must not be found by the next one
  fail(ErrorKind::kRuntime, "centermask: ", what, " failed: ", cudaGetErrorString(error));
}

cudaStream_t handle_of(const CudaStream& stream) { return static_cast<cudaStream_t>(stream.handle); }

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

}  // namespace

struct StreamMemory::Piece {
  CudaStream stream;
  std::mutex mutex;
  void* data = nullptr;
  std::size_t bytes = 0;

  ~Piece() {
    if (data != nullptr) cudaFree(data);
  }
};

namespace {

// More streams than this at once are not usual; those used longest ago lose their memory.
constexpr std::size_t kMostPieces = 32;

std::shared_ptr<StreamMemory::Piece> piece_for(const CudaStream& stream) {
  static std::mutex mutex;
  static auto& pieces = *new std::list<std::shared_ptr<StreamMemory::Piece>>;  // CUDA is down before destructors run
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = std::find_if(pieces.begin(), pieces.end(), [&](const auto& piece) {
    return piece->stream.handle == stream.handle && piece->stream.device == stream.device;
  });
  if (found != pieces.end()) {
    pieces.splice(pieces.begin(), pieces, found);
  } else {
    if (pieces.size() >= kMostPieces) pieces.pop_back();
    pieces.push_front(std::make_shared<StreamMemory::Piece>());
    pieces.front()->stream = stream;
  }
  return pieces.front();
}

}  // namespace

StreamMemory::StreamMemory(const CudaStream& stream, std::size_t bytes)
    : piece_(piece_for(stream)), lock_(piece_->mutex) {
  if (piece_->bytes < bytes) {
    const DeviceGuard guard(stream.device);
    if (piece_->data != nullptr) check_cuda(cudaFree(piece_->data), "cudaFree");
    piece_->data = nullptr;
    piece_->bytes = 0;
    check_cuda(cudaMalloc(&piece_->data, bytes), "cudaMalloc");
    piece_->bytes = bytes;
  }
  workspace_ = {piece_->data, bytes};
}

StreamMemory::~StreamMemory() = default;

void copy_to_host(const CudaStream& stream, void* host, const void* device, std::size_t bytes) {
  if (bytes > 0)
    check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, handle_of(stream)), "cudaMemcpyAsync");
  check_cuda(cudaStreamSynchronize(handle_of(stream)), "cudaStreamSynchronize");
}

void copy_to_device(const CudaStream& stream, void* device, const void* host, std::size_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, handle_of(stream)), "cudaMemcpyAsync");
}

}  // namespace centermask::ort
