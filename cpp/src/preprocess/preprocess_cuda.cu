// A block makes a tile of the output. Where each of its columns and rows lies in the image is worked out once, in
// double as on the CPU; the arithmetic on the pixels is that of the CPU too, rounding by rounding.
#include <algorithm>
#include <cstdint>

#include "centermask/preprocess.h"
#include "cuda/runtime.h"
#include "device_check.h"

namespace centermask {

namespace {

constexpr const char* kOp = "preprocess";
constexpr const char* kPrefix = "preprocess: ";
constexpr int kTileColumns = 64;
constexpr int kTileRows = 16;
constexpr int kThreads = 256;

struct PreprocessArguments {
  const std::uint8_t* image;  // channel 0 of the output's order
  std::int64_t row_stride;
  std::int64_t column_stride;
  std::int64_t channel_stride;  // negative where channels are swapped
  std::int64_t image_height;
  std::int64_t image_width;
  double scale_x, shift_x, scale_y, shift_y;
  float gain[3];
  float bias[3];
  void* out;
  std::int64_t out_stride[2];  // of channels and rows
  std::int64_t height;
  std::int64_t width;
  std::int64_t tile_columns;
  std::int64_t tiles;
};

// One output position along an axis: two neighbouring pixels (clamped into the image), as offsets in memory, and their
// weights, which are 0 for a pixel beyond it.
struct Tap {
  std::int64_t first;
  std::int64_t second;
  float first_weight;
  float second_weight;
};

__device__ Tap make_tap(std::int64_t i, std::int64_t pixels, double scale, double shift, std::int64_t stride) {
  Tap tap{0, 0, 0, 0};
  // Pixel centres are at half-integers; from here on `position` counts from the centre of pixel 0.
  const double position = (static_cast<double>(i) + 0.5 - shift) / scale - 0.5;
  if (!(position > -1 && position < static_cast<double>(pixels))) return tap;
  const double low = floor(position);
  const auto pixel = static_cast<std::int64_t>(low);
  tap.first = (pixel > 0 ? pixel : 0) * stride;
  tap.second = (pixel + 1 < pixels ? pixel + 1 : pixels - 1) * stride;
  if (pixel >= 0) tap.first_weight = static_cast<float>(1 - (position - low));
  if (pixel + 1 < pixels) tap.second_weight = static_cast<float>(position - low);
  return tap;
}

// Never contracted into fused multiply-adds, which would round once less than the CPU.
__device__ float blend(float a_weight, float a, float b_weight, float b) {
  return __fadd_rn(__fmul_rn(a_weight, a), __fmul_rn(b_weight, b));
}

__device__ void store(float* target, float value) { *target = value; }
__device__ void store(__half* target, float value) { *target = __float2half_rn(value); }

template <class T>
__global__ void __launch_bounds__(kThreads) preprocess_kernel(PreprocessArguments to) {
  __shared__ Tap columns[kTileColumns];
  __shared__ Tap rows[kTileRows];
  const auto thread = static_cast<int>(threadIdx.x);
  for (std::int64_t tile = blockIdx.x; tile < to.tiles; tile += gridDim.x) {
    const std::int64_t first_x = tile % to.tile_columns * kTileColumns;
    const std::int64_t first_y = tile / to.tile_columns * kTileRows;
    if (thread < kTileColumns) {
      columns[thread] = make_tap(first_x + thread, to.image_width, to.scale_x, to.shift_x, to.column_stride);
    } else if (thread < kTileColumns + kTileRows) {
      const int i = thread - kTileColumns;
      rows[i] = make_tap(first_y + i, to.image_height, to.scale_y, to.shift_y, to.row_stride);
    }
    __syncthreads();
    const std::int64_t x = first_x + thread % kTileColumns;
    if (x < to.width) {
      const Tap column = columns[thread % kTileColumns];
      for (int i = thread / kTileColumns; i < kTileRows && first_y + i < to.height; i += kThreads / kTileColumns) {
        const Tap row = rows[i];
        const bool black = row.first_weight == 0 && row.second_weight == 0;
        const std::uint8_t* above = to.image + row.first;
        const std::uint8_t* below = to.image + row.second;
        T* target = static_cast<T*>(to.out) + (first_y + i) * to.out_stride[1] + x;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          float value = to.bias[c];
          if (!black) {
            const std::int64_t channel = c * to.channel_stride;
            const float a = blend(column.first_weight, above[column.first + channel], column.second_weight,
                                  above[column.second + channel]);
            const float b = blend(column.first_weight, below[column.first + channel], column.second_weight,
                                  below[column.second + channel]);
            value = __fadd_rn(__fmul_rn(blend(row.first_weight, a, row.second_weight, b), to.gain[c]), to.bias[c]);
          }
          store(target + c * to.out_stride[0], value);
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace

void preprocess_cuda(const TensorView& image, const PreprocessParams& params, const TensorView& out,
                     const CudaStream& stream) {
  check_preprocess(image, params, out);
  check_on_stream(kPrefix, "image", image, stream);
  PreprocessArguments to{};
  to.image = image.ptr<std::uint8_t>();
  to.row_stride = image.stride[0];
  to.column_stride = image.stride[1];
  to.channel_stride = image.stride[2];
  if (params.swap_channels) {
    to.image += 2 * to.channel_stride;
    to.channel_stride = -to.channel_stride;
  }
  to.image_height = image.shape[0];
  to.image_width = image.shape[1];
  to.scale_x = params.image_to_input[0];
  to.shift_x = params.image_to_input[2];
  to.scale_y = params.image_to_input[4];
  to.shift_y = params.image_to_input[5];
  for (int c = 0; c < 3; ++c) {
    to.gain[c] = static_cast<float>(1 / params.std[c]);
    to.bias[c] = static_cast<float>((0 - params.mean[c]) / params.std[c]);
  }
  to.out = out.data;
  to.out_stride[0] = out.stride[0];
  to.out_stride[1] = out.stride[1];
  to.height = out.shape[1];
  to.width = out.shape[2];
  to.tile_columns = (to.width + kTileColumns - 1) / kTileColumns;
  to.tiles = to.tile_columns * ((to.height + kTileRows - 1) / kTileRows);
  const cuda::DeviceGuard guard(stream, kOp);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(to.tiles, 1 << 20));
  if (out.dtype == DType::kFloat32) {
    cuda::launch(kOp, preprocess_kernel<float>, blocks, kThreads, 0, stream, to);
  } else {
    cuda::launch(kOp, preprocess_kernel<__half>, blocks, kThreads, 0, stream, to);
  }
}

}  // namespace centermask
