// Times deform_conv2d's forward on a GPU with one configuration after another, to choose among them. No framework:
//   nvcc -std=c++17 -O3 --expt-relaxed-constexpr -DCENTERMASK_TUNING -DCENTERMASK_SM90A -cudart static
//     -gencode arch=compute_90a,code=sm_90a -Icpp/include -Icpp/src benchmarks/cpp/deform_conv2d_tiles.cu
//     cpp/src/deform_conv2d/forward_cuda.cu cpp/src/deform_conv2d/check.cc -o tiles
//   ./tiles [batch [index of one shape]] > tiles.json
// One line for each configuration on stderr, and all as JSON on stdout. Microseconds of a call: the median of 15
// replays of a CUDA graph of calls whose inputs differ (so that the L2 cache does not hold them), everything included:
// the weights' packing, the sum of the parts of K. `difference`: how far the output is from that of the first
// configuration of the shape (norm, relative). Offsets are about normal with deviation 2.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/runtime.h"
#include "deform_conv2d/forward_plan.h"

namespace {

using namespace centermask;
using deform_forward::Study;
using deform_forward::TileConfig;
using deform_forward::Tuning;

void require(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

// About normal, by the sum of four uniform numbers; stored as T.
template <class T>
__global__ void fill(T* to, std::int64_t count, float scale, unsigned seed) {
  for (std::int64_t i = blockIdx.x * 256LL + threadIdx.x; i < count; i += gridDim.x * 256LL) {
    unsigned state = static_cast<unsigned>(i) * 2654435761u + seed * 40503u + 1;
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

bool comma = false;  // before the next row of the JSON

struct Configuration {
  std::string name;
  Tuning tuning;
  bool channels_last = true;
};

template <class T>
class Bench {
 public:
  Bench(const Shape& s, std::int64_t batch, DType dtype, bool tf32) : s_(s), batch_(batch), dtype_(dtype), tf32_(tf32) {
    const std::int64_t pixels = s.side * s.side, bytes = batch * pixels * (s.c + s.out + 27) * std::int64_t{sizeof(T)};
    sets_ = static_cast<int>(std::max<std::int64_t>(2, std::min<std::int64_t>(8, (std::int64_t{120} << 20) / bytes)));
    for (int i = 0; i < sets_; ++i) {
      const unsigned seed = 10 * static_cast<unsigned>(i);
      x_.push_back(make<T>(batch * s.c * pixels, 1, seed + 1));
      weight_.push_back(make<T>(s.out * s.c * 9, 1 / std::sqrt(9.0f * static_cast<float>(s.c)), seed + 2));
      offset_.push_back(make<T>(batch * 18 * pixels, 2, seed + 3));
      mask_.push_back(make<T>(batch * 9 * pixels, 1, seed + 4));
      output_.push_back(make<T>(batch * s.out * pixels, 1, seed + 5));
    }
    require(cudaStreamCreate(&stream_));
    require(cudaDeviceSynchronize());
  }
  ~Bench() {
    for (const auto& list : {x_, weight_, offset_, mask_, output_}) {
      for (T* data : list) cudaFree(data);
    }
    cudaStreamDestroy(stream_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void run(const Configuration& c) {
    DeformConv2dParams params;
    params.padding[0] = params.padding[1] = 1;
    params.allow_tf32 = tf32_;
    const std::int64_t pixels = s_.side * s_.side;
    const auto views = [&](int i) {
      const auto at = static_cast<std::size_t>(i);
      return std::vector<TensorView>{view(x_[at], dtype_, {batch_, s_.c, s_.side, s_.side}, c.channels_last),
                                     view(weight_[at], dtype_, {s_.out, s_.c, 3, 3}, false),
                                     view(offset_[at], dtype_, {batch_, 18, s_.side, s_.side}, false),
                                     view(mask_[at], dtype_, {batch_, 9, s_.side, s_.side}, false),
                                     view(output_[at], dtype_, {batch_, s_.out, s_.side, s_.side}, c.channels_last)};
    };
    std::string problem;
    std::vector<float> times;
    double difference = NAN;
    try {
      const std::vector<TensorView> first = views(0);
      const std::size_t bytes =
          deform_forward::workspace_tuned(first[0], first[1], first[2], first[3], params, c.tuning);
      void* memory = nullptr;
      require(cudaMalloc(&memory, bytes));
      const auto call = [&](int i) {
        const std::vector<TensorView> v = views(i);
        deform_forward::forward_tuned(v[0], v[1], v[2], v[3], {}, params, {memory, bytes}, v[4], {stream_, 0},
                                      c.tuning);
      };
      require(cudaMemset(output_[0], 0xff, static_cast<std::size_t>(batch_ * s_.out * pixels) * sizeof(T)));
      call(0);
      require(cudaStreamSynchronize(stream_));
      if (c.channels_last) difference = compare();
      cudaGraph_t graph;
      cudaGraphExec_t replay;
      require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
      for (int i = 0; i < sets_; ++i) call(i);
      require(cudaStreamEndCapture(stream_, &graph));
      require(cudaGraphInstantiate(&replay, graph, 0));
      cudaEvent_t begin, end;
      require(cudaEventCreate(&begin));
      require(cudaEventCreate(&end));
      for (int i = 0; i < 18; ++i) {
        require(cudaEventRecord(begin, stream_));
        require(cudaGraphLaunch(replay, stream_));
        require(cudaEventRecord(end, stream_));
        require(cudaEventSynchronize(end));
        float ms = 0;
        require(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 3) times.push_back(ms * 1000 / static_cast<float>(sets_));
      }
      require(cudaEventDestroy(begin));
      require(cudaEventDestroy(end));
      require(cudaGraphExecDestroy(replay));
      require(cudaGraphDestroy(graph));
      require(cudaFree(memory));
    } catch (const Error& error) {
      problem = error.what();
      cudaGraph_t graph = nullptr;
      cudaStreamEndCapture(stream_, &graph);
      cudaGetLastError();
      require(cudaStreamDestroy(stream_));
      require(cudaStreamCreate(&stream_));
    }
    std::sort(times.begin(), times.end());
    const double us = times.empty() ? NAN : static_cast<double>(times[times.size() / 2]);
    const TileConfig& t = c.tuning.tile;
    std::printf("%s  {\"dtype\": \"%s%s\", \"shape\": [%lld, %lld, %lld], \"layout\": \"%s\", \"name\": \"%s\", ",
                comma ? ",\n" : "", dtype_name(dtype_), tf32_ ? "(tf32)" : "", static_cast<long long>(s_.c),
                static_cast<long long>(s_.out), static_cast<long long>(s_.side), c.channels_last ? "nhwc" : "nchw",
                c.name.c_str());
    comma = true;
    std::printf("\"tile\": [%d, %d], \"warps\": [%d, %d], \"stages\": %d, \"blocks\": %d, \"splits\": %d, ",
                t.positions, t.channels, t.warps_m, t.warps_n, t.stages, t.blocks_per_sm, c.tuning.splits);
    std::printf("\"early\": %s, ", c.tuning.early ? "true" : "false");
    if (problem.empty()) {
      std::printf("\"us\": %.1f, \"difference\": ", us);
      std::printf(std::isfinite(difference) ? "%.1e}" : "null}", difference);
    } else {
      std::printf("\"us\": null, \"problem\": \"%s\"}", problem.c_str());
    }
    std::fflush(stdout);
    std::fprintf(
        stderr, "%s%s %lld->%lld@%lld %s %-28s %dx%d warps %d+%d stages %d blocks %d splits %d: %7.1f us  %.1e %s\n",
        dtype_name(dtype_), tf32_ ? "(tf32)" : "", static_cast<long long>(s_.c), static_cast<long long>(s_.out),
        static_cast<long long>(s_.side), c.channels_last ? "nhwc" : "nchw", c.name.c_str(), t.positions, t.channels,
        t.warps_m, t.warps_n, t.stages, t.blocks_per_sm, c.tuning.splits, us, difference, problem.c_str());
  }

 private:
  double compare() {
    std::vector<T> result(static_cast<std::size_t>(batch_ * s_.out * s_.side * s_.side));
    require(cudaMemcpy(result.data(), output_[0], result.size() * sizeof(T), cudaMemcpyDefault));
    if (first_.empty()) {
      for (const T& value : result) first_.push_back(static_cast<float>(value));
    }
    double difference = 0, square = 0;
    for (std::size_t i = 0; i < result.size(); ++i) {
      const double d = static_cast<double>(static_cast<float>(result[i])) - static_cast<double>(first_[i]);
      difference += d * d, square += static_cast<double>(first_[i]) * static_cast<double>(first_[i]);
    }
    return std::sqrt(difference / (square + 1e-30));
  }

  Shape s_;
  std::int64_t batch_;
  DType dtype_;
  bool tf32_;
  int sets_ = 0;
  std::vector<T*> x_, weight_, offset_, mask_, output_;
  std::vector<float> first_;
  cudaStream_t stream_ = nullptr;
};

// Of float16; `few`: positions are so few that not all multiprocessors have a tile.
std::vector<Configuration> configurations(const Shape& s, bool few) {
  std::vector<Configuration> list;
  const auto add = [&](const char* name) -> Tuning& {
    list.push_back({name, {}, true});
    return list.back().tuning;
  };
  const auto tile = [&](TileConfig config, int splits) {
    Tuning& t = add("ring");
    t.tile = config, t.splits = splits;
  };
  add("mma.sync").wgmma = false;
  add("wgmma").ring = false;
  add("ring");
  add("ring, kernels in turn").early = false;
  add("ring, packing early").early_packing = true;
  if (s.side <= 16 || few) add("ring, parts added afterwards").adds = false;
  const TileConfig wide{128, 256, 8, 8, 1, 3}, wide_half{64, 256, 8, 8, 1, 4};
  const TileConfig middle{128, 128, 8, 8, 1, 4}, middle_half{64, 128, 8, 4, 2, 3};
  const TileConfig narrow{128, 64, 8, 4, 2, 2}, narrow_half{64, 64, 8, 4, 2, 3};
  if (few) {
    const TileConfig &whole = s.out > 128  ? wide
                              : s.out > 64 ? middle
                                           : narrow,
                     &half = s.out > 128  ? wide_half
                             : s.out > 64 ? middle_half
                                          : narrow_half;
    for (int splits : {1, 2, 3, 4, 6, 8, 12, 16}) {
      tile(whole, splits);
      tile(half, splits);
    }
    for (int splits : {4, 8, 16}) {
      if (s.out > 128) tile(middle, splits), tile(middle_half, splits);
      if (s.out > 64) tile(narrow, splits), tile(narrow_half, splits);
    }
    for (int splits : {4, 8}) {
      Tuning& t = add("ring, packing early");
      t.tile = half, t.splits = splits, t.early_packing = true;
    }
  } else if (s.out > 128) {
    tile(wide, 0);
    tile(wide_half, 2);
  } else if (s.out > 64) {
    tile(middle_half, 1);
  } else {
    tile({128, 64, 8, 4, 2, 3}, 0);
    tile(narrow_half, 0);
  }
  add("half blend").study = Study::kHalfBlend;
  add("no blend").study = Study::kNoBlend;
  add("no gather").study = Study::kNoGather;
  add("no product").study = Study::kNoProduct;
  add("packing alone").kernels = deform_forward::kPrepare;
  std::vector<int> alone = {0};
  if (few) alone = {0, 1, 8};
  for (int splits : alone) {
    Tuning& t = add("product alone");
    t.kernels = deform_forward::kProduct, t.splits = splits;
    t.adds = false;  // the counters of parts are set by the packing
  }
  list.push_back({"ring", {}, false});
  return list;
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t batch = argc > 1 ? std::atoll(argv[1]) : 16;
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, 0));
  std::printf("{\"device\": \"%s\", \"cuda\": %d, \"batch\": %lld, \"rows\": [\n", properties.name, CUDART_VERSION,
              static_cast<long long>(batch));
  const Shape shapes[] = {{256, 128, 32}, {128, 64, 64}, {512, 256, 16}, {2048, 256, 16}, {64, 64, 128}};
  const int only = argc > 2 ? std::atoi(argv[2]) : -1;
  for (int i = 0; i < 5; ++i) {
    if (only >= 0 && i != only) continue;
    const Shape& s = shapes[i];
    const bool few = batch * s.side * s.side <= 128 * 64;
    const auto plain = [](const char* name, TileConfig tile = {}, int splits = 0) {
      Configuration c{name, {}, true};
      c.tuning.tile = tile, c.tuning.splits = splits;
      return c;
    };
    {
      Bench<__half> bench(s, batch, DType::kFloat16, false);
      for (const Configuration& c : configurations(s, few)) bench.run(c);
    }
    {
      Bench<float> bench(s, batch, DType::kFloat32, true);
      Configuration old = plain("wgmma");
      old.tuning.ring = false;
      bench.run(old);
      bench.run(plain("ring"));
      if (s.out > 128) bench.run(plain("ring", {64, 256, 8, 8, 1, 4}, 2));
      if (s.out > 64 && s.out <= 128) bench.run(plain("ring", {128, 128, 16, 4, 1, 3}));
      if (s.out <= 64) bench.run(plain("ring", {128, 64, 8, 4, 2, 3}));
    }
    Bench<float> bench(s, batch, DType::kFloat32, false);
    Configuration old = plain("mma.sync"), early = plain("ring, packing early"),
                  apart = plain("ring, parts added afterwards");
    old.tuning.wgmma = false, early.tuning.early_packing = true, apart.tuning.adds = false;
    bench.run(old);
    bench.run(plain("ring"));
    bench.run(early);
    if (s.side <= 16 || few) bench.run(apart);
    if (s.out <= 64) bench.run(plain("ring", {128, 64, 8, 4, 1, 3}));
    bench.run({"ring", {}, false});
  }
  std::printf("\n]}\n");
  return 0;
}
