// deform_conv2d's forward with K divided among several blocks, whose sums are added in the order of the parts: nothing
// may be lost, and the result may not depend on who comes last.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/runtime.h"
#include "deform_conv2d/forward_plan.h"
#include "device_memory.h"
#if defined(CENTERMASK_CUDA_EMULATED)
#include "cuda/pipeline.h"
#include "deform_conv2d/forward_parts.cuh"
#endif

namespace {

using namespace centermask;

const Device kCuda{DeviceType::kCuda, 0};

// ---- whole calls ----

struct Layer {
  DType dtype;
  bool tf32;
  std::int64_t n, c, h, w, out;
  bool channels_last;
  deform_forward::TileConfig tile = {};  // otherwise chosen
};

std::vector<unsigned char> encode(const std::vector<float>& values, DType dtype) {
  const auto item = static_cast<std::size_t>(dtype_size(dtype));
  std::vector<unsigned char> bytes(values.size() * item);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const __half half = __float2half_rn(values[i]);
    const __nv_bfloat16 brain = __float2bfloat16_rn(values[i]);
    const void* from = &values[i];
    if (dtype == DType::kFloat16) from = &half;
    if (dtype == DType::kBFloat16) from = &brain;
    std::memcpy(&bytes[i * item], from, item);
  }
  return bytes;
}

TensorView device_view(const DeviceBuffer<unsigned char>& buffer, DType dtype,
                       std::initializer_list<std::int64_t> shape, bool channels_last = false) {
  TensorView view = make_view(buffer.data(), dtype, shape, kCuda);
  if (channels_last) {
    view.stride[1] = 1, view.stride[3] = view.shape[1], view.stride[2] = view.shape[3] * view.shape[1];
    view.stride[0] = view.shape[2] * view.stride[2];
  }
  return view;
}

// The bytes of the result for each number of parts. With `whole`, all values are small whole numbers and all places
// are pixels, so that every sum is exact, in any order and type.
class Call {
 public:
  Call(const Layer& s, bool whole) : s_(s) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto values = [&](std::int64_t count, float scale, int most) {
      std::vector<float> list(static_cast<std::size_t>(count));
      for (float& value : list) {
        value = whole ? static_cast<float>(static_cast<int>(random() % static_cast<unsigned>(2 * most + 1)) - most)
                      : scale * normal(random);
      }
      return DeviceBuffer<unsigned char>(encode(list, s.dtype));
    };
    const std::int64_t pixels = s.h * s.w;
    buffers_.push_back(values(s.n * s.c * pixels, 1, 1));
    buffers_.push_back(values(s.out * s.c * 9, 0.03f, 1));
    buffers_.push_back(values(s.n * 18 * pixels, 2, 2));
    buffers_.push_back(values(s.n * 9 * pixels, 1, 1));
    buffers_.push_back(values(s.out, 1, 3));
  }

  std::vector<unsigned char> run(int splits) const {
    DeformConv2dParams params;
    params.padding[0] = params.padding[1] = 1;
    params.allow_tf32 = s_.tf32;
    deform_forward::Tuning tuning;
    tuning.splits = splits, tuning.tile = s_.tile;
    const TensorView x = device_view(buffers_[0], s_.dtype, {s_.n, s_.c, s_.h, s_.w}, s_.channels_last);
    const TensorView weight = device_view(buffers_[1], s_.dtype, {s_.out, s_.c, 3, 3}, !s_.channels_last);
    const TensorView offset = device_view(buffers_[2], s_.dtype, {s_.n, 18, s_.h, s_.w});
    const TensorView mask = device_view(buffers_[3], s_.dtype, {s_.n, 9, s_.h, s_.w});
    const TensorView bias = device_view(buffers_[4], s_.dtype, {s_.out});
    const auto item = static_cast<std::size_t>(dtype_size(s_.dtype));
    const DeviceBuffer<unsigned char> output(static_cast<std::size_t>(s_.n * s_.out * s_.h * s_.w) * item);
    const DeviceBuffer<unsigned char> memory(deform_forward::workspace_tuned(x, weight, offset, mask, params, tuning));
    deform_forward::forward_tuned(x, weight, offset, mask, bias, params, {memory.data(), memory.size()},
                                  device_view(output, s_.dtype, {s_.n, s_.out, s_.h, s_.w}, s_.channels_last), {},
                                  tuning);
    return output.download();
  }

 private:
  Layer s_;
  std::vector<DeviceBuffer<unsigned char>> buffers_;
};

// Every way of adding: 2 to 8 parts in the kernel, more by another one; parts of different lengths (18 and 36 steps of
// K by 4, 5, 8, 11); tiles that are not full; every tile configuration.
void test_calls() {
  const Layer layers[] = {
      {DType::kFloat16, false, 1, 200, 8, 16, 256, true},  // 64 x 256
      {DType::kFloat16, false, 1, 200, 8, 16, 256, true, {128, 256, 8, 8, 1, 3}},
      {DType::kFloat16, false, 1, 72, 7, 9, 130, false},    // likewise, in runs of positions
      {DType::kFloat16, false, 1, 128, 8, 16, 128, false},  // 128 x 128
      {DType::kBFloat16, false, 2, 128, 7, 5, 40, true},    // 128 x 64
      {DType::kFloat32, false, 1, 64, 8, 16, 128, true},    // in two parts of each number
      {DType::kFloat32, false, 1, 64, 7, 9, 33, false},
      {DType::kFloat32, true, 1, 64, 8, 16, 256, true},
  };
  for (const Layer& s : layers) {
    const Call exact(s, true), random(s, false);
    const std::vector<unsigned char> expected = exact.run(1);
    for (int splits : {2, 3, 4, 5, 8, 11}) {
      const bool same = exact.run(splits) == expected;
      if (!same) std::printf("%s out %d, %d parts\n", dtype_name(s.dtype), static_cast<int>(s.out), splits);
      CHECK(same);
      if (splits == 5 || splits == 11) continue;
      const std::vector<unsigned char> first = random.run(splits);
#if defined(CENTERMASK_CUDA_EMULATED)
      cuda::emulator::Settings& settings = cuda::emulator::settings();
      const unsigned before = settings.seed;
      settings.seed = before + 5;  // another order of blocks
      CHECK(random.run(splits) == first);
      settings.seed = before;
#else
      for (int again = 0; again < 20; ++again) CHECK(random.run(splits) == first);
#endif
    }
  }
}

#if defined(CENTERMASK_CUDA_EMULATED)
// ---- the sum alone, its blocks at the same time ----

unsigned scramble(unsigned bits) {
  for (unsigned factor : {0x7feb352du, 0x846ca68bu}) bits = (bits ^ bits >> 16) * factor;
  return bits ^ bits >> 15;
}

// kThreads threads stand for a block. A block is held up before each of its barriers, for a while that `seed` decides.
constexpr int kThreads = 128;
struct Held {
  static inline unsigned seed = 0;
  static inline unsigned calls[1024];
  static void wait() {
    const unsigned block = threadIdx.x / kThreads, call = calls[threadIdx.x]++;
    const unsigned random = scramble(seed * 64 + block * 8 + call);
    for (unsigned turns = seed == 0 ? 1 : 1 + random % 6 * (random / 6 % 3); turns > 0; --turns) {
      cuda::barrier_of(1 + static_cast<int>(block), kThreads);
    }
  }
};

// Of many sizes, so that other orders give other sums.
float part_value(int part, int piece, int slot, int thread, int i) {
  const unsigned random = scramble(static_cast<unsigned>((((part * 8 + piece) * 8 + slot) * 128 + thread) * 4 + i));
  return std::ldexp(static_cast<float>(random % 4096) - 2048.0f, static_cast<int>(random / 4096 % 20));
}

template <int kTilesN, int kTilesM, int kBytes>
__global__ void parts_kernel(float4* partial, std::int32_t* counters, int parts, float* sums_out, int* writers) {
  constexpr int kOfPiece = kTilesM / deform_forward::kPieces, kSlots = kTilesN * kOfPiece;
  CENTERMASK_DYNAMIC_SHARED(memory);
  const int part = static_cast<int>(threadIdx.x) / kThreads, thread = static_cast<int>(threadIdx.x) % kThreads;
  unsigned char* const mine = memory + part * (kBytes + 64);
  float sums[kTilesN][kTilesM][4];
  for (int n = 0; n < kTilesN; ++n) {
    for (int m = 0; m < kTilesM; ++m) {
      for (int i = 0; i < 4; ++i)
        sums[n][m][i] = part_value(part, m / kOfPiece, n * kOfPiece + m % kOfPiece, thread, i);
    }
  }
  Held::wait();
  const unsigned pieces = deform_forward::add_parts<kThreads, kBytes, Held>(
      partial, counters, parts, part, thread, reinterpret_cast<int*>(mine + kBytes), mine, sums);
  for (int piece = 0; piece < deform_forward::kPieces; ++piece) {
    if ((pieces >> piece & 1u) == 0) continue;
    if (thread == 0) writers[piece] += 1 + 100 * part;
    for (int slot = 0; slot < kSlots; ++slot) {
      for (int i = 0; i < 4; ++i) {
        sums_out[((piece * kSlots + slot) * kThreads + thread) * 4 + i] =
            sums[slot / kOfPiece][piece * kOfPiece + slot % kOfPiece][i];
      }
    }
  }
}

// Returns how many blocks have written pieces, at most.
template <int kTilesN, int kTilesM, int kAtOnce>
int test_sum(int parts, unsigned seed) {
  constexpr int kPieces = deform_forward::kPieces, kSlots = kTilesN * kTilesM / kPieces;
  constexpr int kBytes = (kAtOnce + 1) * kSlots * kThreads * 16;
  const DeviceBuffer<float4> partial(static_cast<std::size_t>(parts * kPieces * kSlots * kThreads));
  const DeviceBuffer<std::int32_t> counters(std::vector<std::int32_t>(kPieces, 0));
  const DeviceBuffer<float> sums(static_cast<std::size_t>(kPieces * kSlots * kThreads * 4));
  const DeviceBuffer<int> writers(std::vector<int>(kPieces, 0));
  Held::seed = seed;
  std::memset(Held::calls, 0, sizeof Held::calls);
  cuda::launch("parts", parts_kernel<kTilesN, kTilesM, kBytes>, dim3(1, 1, 1),
               dim3(static_cast<unsigned>(parts * kThreads), 1, 1), static_cast<std::size_t>(parts * (kBytes + 64)),
               CudaStream{}, partial.data(), counters.data(), parts, sums.data(), writers.data());
  const std::vector<float> actual = sums.download();
  std::size_t at = 0;
  int wrong = 0;
  for (int piece = 0; piece < kPieces; ++piece) {
    for (int slot = 0; slot < kSlots; ++slot) {
      for (int thread = 0; thread < kThreads; ++thread) {
        for (int i = 0; i < 4; ++i) {
          float expected = part_value(0, piece, slot, thread, i);
          for (int part = 1; part < parts; ++part) expected += part_value(part, piece, slot, thread, i);
          if (!(actual[at++] == expected)) ++wrong;
        }
      }
    }
  }
  CHECK(wrong == 0);
  unsigned blocks = 0;
  for (int writer : writers.download()) {
    CHECK(writer % 100 == 1);  // one block, once
    blocks |= 1u << writer / 100;
  }
  int count = 0;
  for (; blocks != 0; blocks &= blocks - 1) ++count;
  return count;
}

void test_sums() {
  int least = 8, most = 0;
  for (int parts = 2; parts <= deform_forward::kMostPartsAdded; ++parts) {
    for (unsigned seed = 0; seed < 12; ++seed) {
      const int counts[] = {test_sum<1, 4, 1>(parts, seed), test_sum<1, 8, 3>(parts, seed),
                            test_sum<2, 8, 2>(parts, seed)};
      for (int count : counts) least = count < least ? count : least, most = count > most ? count : most;
    }
  }
  // The blocks did share the work, and at other times one came so late that it did all of it.
  CHECK(least == 1);
  CHECK(most == deform_forward::kPieces);
}
#endif

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
#if defined(CENTERMASK_CUDA_EMULATED)
  test_sums();
#endif
  test_calls();
  return check_result();
}
