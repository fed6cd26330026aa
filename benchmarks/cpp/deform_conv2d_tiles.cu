// Times deform_conv2d's forward on a GPU with one tile configuration after another, to choose among them. No framework:
//   nvcc -std=c++17 -O3 --expt-relaxed-constexpr -DCENTERMASK_TUNING
//     -DCENTERMASK_SM90A -gencode arch=compute_90a,code=sm_90a -Icpp/include -Icpp/src
//     benchmarks/cpp/deform_conv2d_tiles.cu cpp/src/deform_conv2d/forward_cuda.cu cpp/src/deform_conv2d/check.cc -o
//     tiles
//   ./tiles [batch]
// x and the output are channels-last unless the line says nchw. One line a configuration: microseconds (median of 20
// events after 5 calls to warm up, everything included: the weights' packing, the sum of splits), TFLOP/s, and how far
// the output is from that of the first line of the shape (norm, relative).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/runtime.h"
#include "deform_conv2d/forward_plan.h"

namespace {

using namespace centermask;
using deform_forward::Tuning;

void require(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

// About normal, by the sum of four uniform numbers; stored as T.
template <class T>
__global__ void fill(T* to, std::int64_t count, float scale, unsigned seed) {
  for (std::int64_t i = blockIdx.x * 256LL + threadIdx.x; i < count; i += gridDim.x * 256LL) {
    unsigned state = static_cast<unsigned>(i) * 2654435761u + seed;
    float sum = 0;
    for (int k = 0; k < 4; ++k) {
      state ^= state << 13, state ^= state >> 17, state ^= state << 5;
      sum += static_cast<float>(state >> 8) / 16777216.0f - 0.5f;
    }
    to[i] = T(sum * scale * 1.732f);
  }
}

template <class T>
T* make(std::int64_t count, float scale, unsigned seed) {
  T* data = nullptr;
  require(cudaMalloc(&data, static_cast<std::size_t>(count) * sizeof(T) + 256));
  fill<T><<<1024, 256>>>(data, count, scale, seed);
  require(cudaGetLastError());
  return data;
}

TensorView view(void* data, DType dtype, std::initializer_list<std::int64_t> shape, bool channels_last) {
  TensorView v = make_view(data, dtype, shape, Device{DeviceType::kCuda, 0});
  if (channels_last) {
    v.stride[1] = 1, v.stride[3] = v.shape[1], v.stride[2] = v.shape[3] * v.shape[1];
    v.stride[0] = v.shape[2] * v.stride[2];
  }
  return v;
}

struct Shape {
  std::int64_t c, out, side;
};

template <class T>
void run(const Shape& s, std::int64_t batch, DType dtype, bool tf32, const std::vector<Tuning>& tunings) {
  const std::int64_t pixels = s.side * s.side;
  T* x = make<T>(batch * s.c * pixels, 1, 1);
  T* weight = make<T>(s.out * s.c * 9, 1 / std::sqrt(9.0f * static_cast<float>(s.c)), 2);
  T* offset = make<T>(batch * 18 * pixels, 1, 3);
  T* mask = make<T>(batch * 9 * pixels, 1, 4);
  T* output = make<T>(batch * s.out * pixels, 1, 5);
  DeformConv2dParams params;
  params.padding[0] = params.padding[1] = 1;
  params.allow_tf32 = tf32;
  std::vector<float> first;
  for (int layout = 0; layout < 2; ++layout) {
    const bool last = layout == 0;
    const TensorView vx = view(x, dtype, {batch, s.c, s.side, s.side}, last);
    const TensorView vweight = view(weight, dtype, {s.out, s.c, 3, 3}, false);
    const TensorView voffset = view(offset, dtype, {batch, 18, s.side, s.side}, false);
    const TensorView vmask = view(mask, dtype, {batch, 9, s.side, s.side}, false);
    const TensorView voutput = view(output, dtype, {batch, s.out, s.side, s.side}, last);
    for (const Tuning& t : tunings) {
      if (!last && (t.tile.positions != 0 || t.splits != 0 || t.patches >= 0 || t.half_blend)) continue;
      const std::size_t bytes = deform_forward::workspace_tuned(vx, vweight, voffset, vmask, params, t);
      void* memory = nullptr;
      require(cudaMalloc(&memory, bytes));
      cudaEvent_t begin, end;
      require(cudaEventCreate(&begin));
      require(cudaEventCreate(&end));
      std::vector<float> times;
      const char* problem = nullptr;
      try {
        for (int i = 0; i < 25; ++i) {
          require(cudaEventRecord(begin));
          deform_forward::forward_tuned(vx, vweight, voffset, vmask, {}, params, {memory, bytes}, voutput, {}, t);
          require(cudaEventRecord(end));
          require(cudaEventSynchronize(end));
          float ms = 0;
          require(cudaEventElapsedTime(&ms, begin, end));
          if (i >= 5) times.push_back(ms * 1000);
        }
      } catch (const Error& error) {
        problem = "failed";
        std::printf("%s\n", error.what());
      }
      std::vector<T> result(static_cast<std::size_t>(batch * s.out * pixels));
      require(cudaMemcpy(result.data(), output, result.size() * sizeof(T), cudaMemcpyDefault));
      double difference = 0, square = 0;
      if (last) {
        if (first.empty()) {
          for (const T& value : result) first.push_back(static_cast<float>(value));
        }
        for (std::size_t i = 0; i < result.size(); ++i) {
          const double d = static_cast<double>(static_cast<float>(result[i])) - static_cast<double>(first[i]);
          difference += d * d, square += static_cast<double>(first[i]) * static_cast<double>(first[i]);
        }
      }
      std::sort(times.begin(), times.end());
      const double us = problem != nullptr || times.empty() ? NAN : static_cast<double>(times[times.size() / 2]);
      const double flops = 2.0 * 9 * static_cast<double>(batch * pixels * s.c * s.out);
      std::printf(
          "%s%s %lld->%lld@%lldx%lld %s%s tile %dx%d warps %dx%d blocks %d splits %d patches %d half_blend %d: "
          "%.1f us %.0f TFLOP/s difference %.1e\n",
          dtype_name(dtype), tf32 ? "(tf32)" : "", static_cast<long long>(s.c), static_cast<long long>(s.out),
          static_cast<long long>(s.side), static_cast<long long>(s.side), last ? "nhwc" : "nchw",
          t.simt    ? " simt"
          : t.wgmma ? " wgmma"
                    : " mma",
          t.tile.positions, t.tile.channels, t.tile.warps_m, t.tile.warps_n, t.tile.blocks_per_sm, t.splits, t.patches,
          t.half_blend ? 1 : 0, us, flops / us * 1e-6, std::sqrt(difference / (square + 1e-30)));
      std::fflush(stdout);
      require(cudaEventDestroy(begin));
      require(cudaEventDestroy(end));
      require(cudaFree(memory));
    }
  }
  for (T* data : {x, weight, offset, mask, output}) require(cudaFree(data));
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t batch = argc > 1 ? std::atoll(argv[1]) : 16;
  const Shape shapes[] = {{2048, 256, 16}, {256, 128, 32}, {128, 64, 64}, {512, 256, 16}, {64, 64, 128}};
  for (const Shape& s : shapes) {
    std::vector<Tuning> tunings(1);
    const auto add = [&](deform_forward::TileConfig tile, int splits, int patches, bool half_blend) {
      tunings.push_back({tile, splits, patches, false, false, half_blend});
    };
    for (int splits : {1, 2, 3, 4, 8}) {  // the warpgroups' kernel
      Tuning t;
      t.splits = splits;
      if (splits == 1 || s.out > 128) tunings.push_back(t);
    }
    Tuning other;
    other.tile =
        s.out > 64 ? deform_forward::TileConfig{128, 128, 1, 8, 2} : deform_forward::TileConfig{128, 64, 1, 4, 3};
    if (s.out <= 128) tunings.push_back(other);
    if (s.out == 128) {
      other.splits = 2;
      tunings.push_back(other);
    }
    Tuning runs;
    runs.patches = 0;
    tunings.push_back(runs);
    Tuning blended;
    blended.half_blend = true;
    tunings.push_back(blended);
    for (int half_blend = 0; half_blend < 2; ++half_blend) {
      const bool half = half_blend != 0;
      if (s.out > 128) {
        for (int splits : {3, 4, 8}) add({128, 256, 2, 4, 1}, splits, 1, half);
        for (int splits : {2, 4}) add({64, 256, 2, 4, 1}, splits, 1, half);
        for (int splits : {2, 4}) add({64, 256, 1, 4, 2}, splits, 1, half);
        for (int splits : {2, 4}) add({128, 128, 2, 2, 2}, splits, 1, half);
      } else if (s.out > 64) {
        for (int splits : {1, 2}) add({128, 128, 2, 4, 1}, splits, 1, half);
        for (int splits : {1, 2}) add({128, 128, 2, 2, 2}, splits, 1, half);
        add({64, 128, 2, 4, 2}, 1, 1, half);
        add({64, 128, 1, 4, 3}, 1, 1, half);
      } else {
        add({128, 64, 4, 2, 2}, 1, 1, half);
        add({128, 64, 4, 1, 3}, 1, 1, half);
        add({128, 64, 2, 2, 3}, 1, 1, half);
        add({64, 64, 2, 2, 4}, 1, 1, half);
        add({256, 64, 8, 1, 1}, 1, 1, half);
      }
      if (!half)
        add({s.out > 128 ? 128 : 128,
             s.out > 128  ? 256
             : s.out > 64 ? 128
                          : 64,
             s.out > 64 ? 2 : 4, s.out > 64 ? 4 : 2, s.out > 64 ? 1 : 2},
            s.out > 128 ? 4 : 1, 0, false);
    }
    run<__half>(s, batch, DType::kFloat16, false, tunings);
    std::vector<Tuning> plain(1);
    run<float>(s, batch, DType::kFloat32, true, plain);
    plain.push_back({{1, 0, 0, 0, 0}, 0, -1, true, false, false});
    run<float>(s, batch, DType::kFloat32, false, plain);
  }
  return 0;
}
