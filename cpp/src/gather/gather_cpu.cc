#include <algorithm>

#include "centermask/error.h"
#include "centermask/gather.h"

namespace centermask {

namespace {

template <class T>
void gather_one(const TensorView& features, std::int64_t n, std::int64_t cell, T* patch) {
  const std::int64_t channels = features.shape[1];
  const std::int64_t height = features.shape[2];
  const std::int64_t width = features.shape[3];
  if (cell < 0 || cell >= height * width) {
    std::fill(patch, patch + channels * 9, T(0));
    return;
  }
  const std::int64_t y = cell / width;
  const std::int64_t x = cell % width;
  const std::int64_t sy = features.stride[2];
  const std::int64_t sx = features.stride[3];
  // Worked out once for all channels: where the nine taps lie, seen from the cell, and which are on the map.
  std::int64_t offset[9];
  bool inside[9];
  for (std::int64_t tap = 0; tap < 9; ++tap) {
    const std::int64_t dy = tap / 3 - 1;
    const std::int64_t dx = tap % 3 - 1;
    inside[tap] = y + dy >= 0 && y + dy < height && x + dx >= 0 && x + dx < width;
    offset[tap] = inside[tap] ? dy * sy + dx * sx : 0;
  }
  const T* cell_of_channel = features.ptr<T>() + n * features.stride[0] + y * sy + x * sx;
  for (std::int64_t f = 0; f < channels; ++f, cell_of_channel += features.stride[1], patch += 9) {
    for (int tap = 0; tap < 9; ++tap) patch[tap] = inside[tap] ? cell_of_channel[offset[tap]] : T(0);
  }
}

template <class T>
void gather(const TensorView& features, const TensorView& index, const TensorView& patches,
            const ParallelFor& parallel) {
  const std::int64_t k = index.shape[1];
  const std::int64_t columns = patches.shape[2];
  const std::int64_t rows = index.shape[0] * k;
  if (rows == 0 || columns == 0) return;
  const std::int64_t chunks = std::min<std::int64_t>(rows, parallel.threads > 1 ? 4 * parallel.threads : 1);
  parallel(chunks, [&](std::int64_t chunk) {
    for (std::int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; ++row) {
      const std::int64_t n = row / k;
      const std::int64_t cell = index.ptr<std::int64_t>()[n * index.stride[0] + row % k * index.stride[1]];
      gather_one(features, n, cell, patches.ptr<T>() + row * columns);
    }
  });
}

}  // namespace

void gather_patches_cpu(const TensorView& features, const TensorView& index, const TensorView& patches,
                        const ParallelFor& parallel) {
  check_gather_patches(features, index, patches);
  if (features.device.type != DeviceType::kCpu) {
    fail(ErrorKind::kUnsupported, "gather_patches: features must be on the CPU");
  }
  if (features.dtype == DType::kFloat32) {
    gather<float>(features, index, patches, parallel);
  } else {
    gather<double>(features, index, patches, parallel);
  }
}

}  // namespace centermask
