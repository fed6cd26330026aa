// One thread for each element of the patches, so that writes are whole lines; the reads are nine short rows.
#include <algorithm>
#include <cstdint>

#include "centermask/gather.h"
#include "cuda/runtime.h"
#include "device_check.h"

namespace centermask {

namespace {

constexpr const char* kOp = "gather_patches";
constexpr const char* kPrefix = "gather_patches: ";
constexpr int kThreads = 256;

struct GatherArguments {
  const void* features;
  const std::int64_t* index;
  void* patches;
  std::int64_t feature_stride[4];
  std::int64_t index_stride[2];
  std::int64_t height;
  std::int64_t width;
  std::int64_t top_k;
  std::int64_t rows;     // N * K
  std::int64_t columns;  // F * 9
};

// Values are copied as they are, so that only their size matters: U is an unsigned integer of it.
template <class U>
__global__ void __launch_bounds__(kThreads) gather_kernel(GatherArguments to) {
  for (std::int64_t row = blockIdx.x; row < to.rows; row += gridDim.x) {
    const std::int64_t n = row / to.top_k;
    const std::int64_t cell = to.index[n * to.index_stride[0] + row % to.top_k * to.index_stride[1]];
    const bool on_map = cell >= 0 && cell < to.height * to.width;
    const std::int64_t y = on_map ? cell / to.width : 0;
    const std::int64_t x = on_map ? cell % to.width : 0;
    const U* image = static_cast<const U*>(to.features) + n * to.feature_stride[0];
    U* patch = static_cast<U*>(to.patches) + row * to.columns;
    const std::int64_t step = static_cast<std::int64_t>(gridDim.y) * kThreads;
    for (std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x; column < to.columns;
         column += step) {
      const std::int64_t f = column / 9;
      const auto tap = static_cast<int>(column % 9);
      const std::int64_t ty = y + tap / 3 - 1;
      const std::int64_t tx = x + tap % 3 - 1;
      const bool inside = on_map && ty >= 0 && ty < to.height && tx >= 0 && tx < to.width;
      patch[column] =
          inside ? image[f * to.feature_stride[1] + ty * to.feature_stride[2] + tx * to.feature_stride[3]] : U(0);
    }
  }
}

}  // namespace

void gather_patches_cuda(const TensorView& features, const TensorView& index, const TensorView& patches,
                         const CudaStream& stream) {
  check_gather_patches(features, index, patches);
  check_on_stream(kPrefix, "features", features, stream);
  if (patches.size() == 0) return;
  GatherArguments to{};
  to.features = features.data;
  to.index = index.ptr<std::int64_t>();
  to.patches = patches.data;
  for (int i = 0; i < 4; ++i) to.feature_stride[i] = features.stride[i];
  for (int i = 0; i < 2; ++i) to.index_stride[i] = index.stride[i];
  to.height = features.shape[2];
  to.width = features.shape[3];
  to.top_k = index.shape[1];
  to.rows = index.shape[0] * to.top_k;
  to.columns = patches.shape[2];
  const cuda::DeviceGuard guard(stream, kOp);
  const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(to.rows, 1 << 20)),
                  static_cast<unsigned>(std::min<std::int64_t>((to.columns + kThreads - 1) / kThreads, 1024)));
  if (features.dtype == DType::kFloat32) {
    cuda::launch(kOp, gather_kernel<std::uint32_t>, grid, kThreads, 0, stream, to);
  } else {
    cuda::launch(kOp, gather_kernel<std::uint16_t>, grid, kThreads, 0, stream, to);
  }
}

}  // namespace centermask
