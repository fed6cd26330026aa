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
#include "deform_conv2d/forward_write.cuh"
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

  // Of the last of `calls` on one workspace, which finds there what the one before has left. `adds`: in the kernel.
  std::vector<unsigned char> run(int splits, bool adds = true, int calls = 1) const {
    DeformConv2dParams params;
    params.padding[0] = params.padding[1] = 1;
    params.allow_tf32 = s_.tf32;
    deform_forward::Tuning tuning;
    tuning.splits = splits, tuning.tile = s_.tile, tuning.adds = adds;
    const TensorView x = device_view(buffers_[0], s_.dtype, {s_.n, s_.c, s_.h, s_.w}, s_.channels_last);
    const TensorView weight = device_view(buffers_[1], s_.dtype, {s_.out, s_.c, 3, 3}, !s_.channels_last);
    const TensorView offset = device_view(buffers_[2], s_.dtype, {s_.n, 18, s_.h, s_.w});
    const TensorView mask = device_view(buffers_[3], s_.dtype, {s_.n, 9, s_.h, s_.w});
    const TensorView bias = device_view(buffers_[4], s_.dtype, {s_.out});
    const auto item = static_cast<std::size_t>(dtype_size(s_.dtype));
    const DeviceBuffer<unsigned char> memory(deform_forward::workspace_tuned(x, weight, offset, mask, params, tuning));
    std::vector<DeviceBuffer<unsigned char>> outputs;
    for (int call = 0; call < calls; ++call) {
      outputs.emplace_back(static_cast<std::size_t>(s_.n * s_.out * s_.h * s_.w) * item);
    }
    for (const auto& output : outputs) {  // without a pause
      deform_forward::forward_tuned(x, weight, offset, mask, bias, params, {memory.data(), memory.size()},
                                    device_view(output, s_.dtype, {s_.n, s_.out, s_.h, s_.w}, s_.channels_last), {},
                                    tuning);
    }
    return outputs.back().download();
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
      CHECK(random.run(splits, false) == first);  // the same order of parts
      if (splits == 3) CHECK(random.run(splits, true, 2) == first);
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

// The ring's places are 32 bits of bytes: a map whose columns lie further apart is another kernel's. The workspace
// tells them apart, since the ring packs float32 weights in two parts.
void test_far_columns() {
  const auto bytes = [](std::int64_t pixel, bool ring) {
    float value = 0;  // never read
    TensorView x = make_view(&value, DType::kFloat32, {1, 8, 4, 3}, kCuda);
    x.stride[1] = 1, x.stride[2] = 8, x.stride[3] = pixel, x.stride[0] = 3 * pixel;
    x.data = reinterpret_cast<void*>(std::uintptr_t{1} << 20);
    const auto other = [&](std::initializer_list<std::int64_t> shape) {
      return make_view(&value, DType::kFloat32, shape, kCuda);
    };
    DeformConv2dParams params;
    params.padding[0] = params.padding[1] = 1;
    deform_forward::Tuning tuning;
    tuning.ring = ring;
    return deform_forward::workspace_tuned(x, other({16, 8, 3, 3}), other({1, 18, 4, 3}), other({1, 9, 4, 3}), params,
                                           tuning);
  };
  const std::int64_t far = std::int64_t{1} << 29;  // 2 GiB
  CHECK(bytes(far, true) == bytes(far, false));
#if defined(CENTERMASK_CUDA_EMULATED)  // where the ring always is
  CHECK(bytes(far - 4, true) > bytes(far - 4, false));
#endif
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

// ---- the writing alone, by pieces ----

template <int kCount>
struct Together {
  static void wait() { cuda::barrier_of(1, kCount); }
};

// Whole numbers that float16 has, some negative.
float tile_value(int row, int column) { return static_cast<float>((row * 131 + column * 17) % 509 - 250); }

// Pieces that are another block's have rubbish.
template <class V, int kM, int kN, int kGroups, int kBytes>
__global__ void write_kernel(const deform_forward::Arguments a, unsigned pieces) {
  using namespace deform_forward;
  constexpr TileConfig kTile = {kM, kN, 8, 4 * kGroups, 1, 3};
  CENTERMASK_DYNAMIC_SHARED(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float sums[kN / 64 / kGroups][kM / 8][4];
  for (int n = 0; n < kN / 64 / kGroups; ++n) {
    for (int m = 0; m < kM / 8; ++m) {
      for (int i = 0; i < 4; ++i) {
        const int row = m * 8 + lane % 4 * 2 + i % 2, column = (n * 4 * kGroups + warp) * 16 + i / 2 * 8 + lane / 4;
        const bool has = (pieces >> row / (kM / kPieces) & 1u) != 0;
        sums[n][m][i] = has ? tile_value(row, column) : 777.0f;
      }
    }
  }
  write_tile<V, kM, kN, 1, 4 * kGroups, kBytes, true, Together<128 * kGroups>>(a, kTile, 0, 0, 0, memory, 0, warp, sums,
                                                                               SomePieces{pieces});
}

// One tile, written by several blocks one after another, as their `pieces` say. After each the output must have these
// pieces, what was there before, and nothing else. `width`: 16, for a patch, or that of an image which the tile has a
// run of positions of, not quite all.
template <class V, int kM, int kN, int kGroups, int kBytes = 3 * (kM + kN) * 128>
void test_write(int width, int out, bool channels_last, bool vectors, const std::vector<unsigned>& blocks) {
  const bool patch = width == 16;
  const int positions = patch ? kM : kM - 5, height = (positions + width - 1) / width, pixels = height * width;
  const DeviceBuffer<V> output(static_cast<std::size_t>(out * pixels));
  deform_forward::Arguments a{};
  a.output = output.data();
  a.out_height = height, a.out_width = width, a.positions = positions;
  a.patch_w = patch ? 16 : 0, a.patch_h = kM / 16, a.patch_log2 = 4, a.patches_x = a.patches_y = 1;
  a.groups = a.out_blocks = 1, a.group_out = out, a.tiles = 1;
  a.channels_last_out = channels_last, a.vectors_out = vectors, a.relu = 1;
  a.output_stride[0] = out * pixels;
  a.output_stride[1] = channels_last ? 1 : pixels;
  a.output_stride[2] = width * (channels_last ? out : 1);
  a.output_stride[3] = channels_last ? out : 1;
  std::vector<V> expected = output.download();
  for (unsigned pieces : blocks) {
    cuda::launch("write", write_kernel<V, kM, kN, kGroups, kBytes>, dim3(1, 1, 1), dim3(128 * kGroups, 1, 1),
                 static_cast<std::size_t>(kBytes), CudaStream{}, a, pieces);
    for (int row = 0; row < positions; ++row) {
      if ((pieces >> row / (kM / deform_forward::kPieces) & 1u) == 0) continue;
      for (int column = 0; column < out; ++column) {
        const float value = tile_value(row, column) < 0 ? 0.0f : tile_value(row, column);
        expected[static_cast<std::size_t>(channels_last ? row * out + column : column * pixels + row)] =
            static_cast<V>(value);
      }
    }
    const std::vector<V> actual = output.download();
    const bool same = std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(V)) == 0;
    if (!same) std::printf("%dx%d, %d channels, width %d, pieces %u\n", kM, kN, out, width, pieces);
    CHECK(same);
  }
}

void test_writes() {
  const std::vector<unsigned> ways[] = {{4, 8, 1, 2}, {5, 10}, {8, 7}, {15}};
  for (bool channels_last : {false, true}) {
    for (const std::vector<unsigned>& blocks : ways) {
      test_write<__half, 64, 256, 2>(16, 256, channels_last, true, blocks);  // the ring's tiles, through stmatrix
      test_write<__half, 128, 256, 2>(16, 256, channels_last, true, blocks);
      test_write<__half, 128, 256, 2>(13, 250, channels_last, false, blocks);
      test_write<__half, 128, 128, 2>(16, 128, channels_last, true, blocks);
      test_write<__half, 128, 64, 1>(16, 40, channels_last, true, blocks);
      test_write<float, 64, 256, 2>(16, 256, channels_last, true, blocks);  // without
      test_write<float, 128, 128, 1>(11, 125, channels_last, false, blocks);
      test_write<float, 128, 64, 1>(16, 36, channels_last, true, blocks);
      test_write<float, 128, 64, 1, 128 * 36 * 4>(16, 64, channels_last, true, blocks);  // half the channels at a time
    }
  }
}
#endif

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
#if defined(CENTERMASK_CUDA_EMULATED)
  test_sums();
  test_writes();
#endif
  test_far_columns();
  test_calls();
  return check_result();
}
