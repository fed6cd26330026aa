// cpp/bindings/onnxruntime/cuda_memory.h where the device is emulated: its memory is the host's.
#include <cstdlib>
#include <cstring>
#include <new>

#include "../../cpp/bindings/onnxruntime/cuda_memory.h"

namespace centermask::ort {

struct StreamMemory::Piece {
  std::mutex mutex;
  void* data;
  explicit Piece(std::size_t bytes) : data(std::aligned_alloc(256, (bytes + 255) / 256 * 256)) {
    if (data == nullptr) throw std::bad_alloc();
    std::memset(data, 0xcd, bytes);
  }
  ~Piece() { std::free(data); }
};

StreamMemory::StreamMemory(const CudaStream&, std::size_t bytes)
    : piece_(std::make_shared<Piece>(bytes)), workspace_{piece_->data, bytes} {}
StreamMemory::~StreamMemory() = default;

void copy_to_host(const CudaStream&, void* host, const void* device, std::size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}
void copy_to_device(const CudaStream&, void* device, const void* host, std::size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}

}  // namespace centermask::ort
