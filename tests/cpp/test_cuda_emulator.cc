// The emulator that the CUDA kernels are tested with, itself tested: right kernels are right on it, and wrong ones
// show.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cuda/pipeline.h"
#include "cuda/runtime.h"

namespace {

using centermask::CudaStream;
using centermask::ErrorKind;
namespace cuda = centermask::cuda;
namespace emulator = centermask::cuda::emulator;

const CudaStream kStream;

// ---- kernels ----

__global__ void sum_kernel(const float* values, int count, float* sum) {
  __shared__ float partial[32];
  float mine = 0.0f;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < count;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    mine += __ldg(values + i);
  }
  for (int step = 16; step > 0; step /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, step);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) partial[warp] = mine;
  __syncthreads();
  if (warp != 0) return;  // and thereby leaves the barriers
  mine = lane < blockDim.x / 32 ? partial[lane] : 0.0f;
  for (int step = 16; step > 0; step /= 2) mine += __shfl_down_sync(0xffffffffu, mine, static_cast<unsigned>(step));
  if (lane == 0) atomicAdd(sum, mine);
}

template <int kSide, bool kBarrier>
__global__ void transpose_kernel(const int* from, int* to, int rows, int columns) {
  __shared__ int tile[kSide][kSide + 1];
  const int x = static_cast<int>(blockIdx.x) * kSide, y = static_cast<int>(blockIdx.y) * kSide;
  const int tx = static_cast<int>(threadIdx.x), ty = static_cast<int>(threadIdx.y);
  if (y + ty < rows && x + tx < columns) tile[ty][tx] = from[(y + ty) * columns + x + tx];
  if (kBarrier) __syncthreads();
  if (x + ty < columns && y + tx < rows) to[(x + ty) * rows + y + tx] = tile[tx][ty];
}

__global__ void dynamic_kernel(float* out, int count, int past) {
  CENTERMASK_DYNAMIC_SHARED(memory);
  float* values = reinterpret_cast<float*>(memory);
  const int t = static_cast<int>(threadIdx.x);
  if (t < count) out[t] = values[t];  // what is there at the start
  if (past > 0 && t == 0) values[count - 1 + past] = 1.0f;
}

// The first warp fills two stages in turn, the others read them: as fast as mbarriers let them. Without `returns` the
// readers keep the stages.
__global__ void ring_kernel(const int* from, int* sums, int steps, bool returns) {
  CENTERMASK_DYNAMIC_SHARED(memory);
  cuda::Mbarrier* const full = reinterpret_cast<cuda::Mbarrier*>(memory);
  cuda::Mbarrier* const empty = full + 2;
  int* const stages = reinterpret_cast<int*>(memory + 64);  // of 64 numbers, the second half copied in one piece
  const int lane = static_cast<int>(threadIdx.x % 32), readers = static_cast<int>(blockDim.x / 32) - 1;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) cuda::mbarrier_init(full[i], 2), cuda::mbarrier_init(empty[i], readers);
    cuda::mbarrier_publish_init();
  }
  __syncthreads();
  int sum = 0;
  for (int step = 0; step < steps; ++step) {
    int* const stage = stages + step % 2 * 64;
    if (threadIdx.x < 32) {
      cuda::mbarrier_wait(empty[step % 2], (step / 2 + 1) % 2);
      if (lane == 0) {
        cuda::mbarrier_arrive_expect(full[step % 2], 128);
        cuda::copy_bulk(stage + 32, from + step * 64 + 32, 128, full[step % 2]);
      }
      stage[lane] = from[step * 64 + lane];
      __syncwarp();
      if (lane == 0) cuda::mbarrier_arrive(full[step % 2]);
    } else {
      cuda::mbarrier_wait(full[step % 2], step / 2 % 2);
      sum += stage[lane] + stage[lane + 32];
      __syncwarp();
      if (lane == 0 && returns) cuda::mbarrier_arrive(empty[step % 2]);
    }
  }
  if (threadIdx.x >= 32) sums[threadIdx.x - 32] = sum;
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void partial_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncwarp();
    if (threadIdx.x == 40) {
      __syncwarp();
    } else {
      __shfl_sync(0xffffffffu, 1, 0);
    }
  }
}
__global__ void wrong_mask_kernel() {
  if (threadIdx.x < 16) {
    __ballot_sync(0xffffffffu, 1);
  } else {
    __shfl_sync(0xffffffffu, 1, 0);
  }
}
__global__ void outside_mask_kernel() { __syncwarp(0xfffffffeu); }

__global__ void votes_kernel(unsigned* out) {
  const unsigned t = threadIdx.x;
  const unsigned half = t < 16 ? 0x0000ffffu : 0xffff0000u;
  unsigned odd = 0, group = 0;
  if (t < 16) {  // two halves of the warp go their own ways
    odd = __ballot_sync(half, t & 1u);
  } else {
    group = __match_any_sync(half, t / 4);
    group = __shfl_sync(half, group, 20);
  }
  __syncwarp();
  const unsigned sum = __reduce_add_sync(0xffffffffu, t);
  const unsigned before = __shfl_up_sync(0xffffffffu, t, 1, 8);
  const int all = __all_sync(0xffffffffu, t < 32), any = __any_sync(0xffffffffu, t == 33);
  const int count = __syncthreads_count(t % 3 == 0);
  unsigned* mine = out + 7 * t;
  mine[0] = odd, mine[1] = group, mine[2] = sum, mine[3] = before;
  mine[4] = static_cast<unsigned>(all), mine[5] = static_cast<unsigned>(any), mine[6] = static_cast<unsigned>(count);
}

__global__ void atomics_kernel(int* histogram, unsigned long long* largest, float* total, double* total_double,
                               int* locked, __half2* pair) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(histogram + t % 3, 1);
  atomicMax(largest, static_cast<unsigned long long>(t) << 33);
  atomicAdd(total, 0.5f);
  atomicAdd(total_double, 0.25);
  atomicAdd(pair, __floats2half2_rn(1.0f, 2.0f));
  int seen = *locked, expected = 0;
  do {
    expected = seen;
    seen = atomicCAS(locked, expected, expected + 2);
  } while (seen != expected);
}

// A product of two 8 x 4 and 4 x 8 matrices, each lane bringing one element of both.
__global__ void exchange_kernel(const float* a, const float* b, float* c) {
  struct Fragment {
    float a, b;
  };
  const int t = static_cast<int>(threadIdx.x);
  const auto lanes = emulator::warp_exchange(0xffffffffu, Fragment{a[t], b[t]}, "product");
  for (int j = 0; j < 2; ++j) {
    const int row = (2 * t + j) / 8, column = (2 * t + j) % 8;
    float sum = 0.0f;
    for (int k = 0; k < 4; ++k) sum += lanes[row * 4 + k].a * lanes[k * 8 + column].b;
    c[row * 8 + column] = sum;
  }
}

__global__ void order_kernel(int* next, int* order) {
  order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// ---- tests ----

void test_sum() {
  std::vector<float> values(5000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 17);
  double expected = 0.0;
  for (const float value : values) expected += value;
  float sum = 0.0f;
  cuda::launch("sum", sum_kernel, 3, 256, 0, kStream, values.data(), static_cast<int>(values.size()), &sum);
  CHECK_NEAR(sum, expected, 0.0);
}

template <bool kBarrier>
int wrong_after_transpose() {
  const int rows = 37, columns = 21;
  std::vector<int> from(rows * columns), to(rows * columns, -7);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<int>(i);
  cuda::launch("transpose", transpose_kernel<16, kBarrier>, dim3(2, 3), dim3(16, 16), 0, kStream, from.data(),
               to.data(), rows, columns);
  int wrong = 0;
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < columns; ++x) wrong += to[static_cast<std::size_t>(x * rows + y)] != y * columns + x;
  }
  return wrong;
}

void test_shared_memory() {
  CHECK(wrong_after_transpose<true>() == 0);
  CHECK(wrong_after_transpose<false>() > 100);
  std::vector<float> values(8);
  float* out = values.data();
  cuda::launch("dynamic", dynamic_kernel, 1, 64, 8 * sizeof(float), kStream, out, 8, 0);
  for (const float value : values) CHECK(std::isnan(value));
  CHECK_FAILS(cuda::launch("dynamic", dynamic_kernel, 1, 64, 8 * sizeof(float), kStream, out, 8, 1),
              ErrorKind::kRuntime, "dynamic: dynamic shared memory of 32 bytes was written past its end");
  emulator::settings().compute_capability = 75;
  CHECK_FAILS(cuda::launch("dynamic", dynamic_kernel, 1, 64, 65 * 1024, kStream, out, 8, 0), ErrorKind::kRuntime,
              "more than sm_75 has");
  emulator::settings().compute_capability = 90;
  cuda::launch("dynamic", dynamic_kernel, 1, 64, 227 * 1024, kStream, out, 8, 0);
}

void test_wrong_kernels() {
  CHECK_FAILS(cuda::launch("a", divergent_barrier_kernel, 1, 64, 0, kStream), ErrorKind::kRuntime, "divergent code");
  CHECK_FAILS(cuda::launch("b", partial_barrier_kernel, 1, 64, 0, kStream), ErrorKind::kRuntime, "waits for ever");
  CHECK_FAILS(cuda::launch("c", wrong_mask_kernel, 1, 32, 0, kStream), ErrorKind::kRuntime,
              "thread (16,0,0) in __shfl_sync");
  CHECK_FAILS(cuda::launch("d", outside_mask_kernel, 1, 32, 0, kStream), ErrorKind::kRuntime, "not in its own mask");
  CHECK_FAILS(cuda::launch("e", outside_mask_kernel, 0, 32, 0, kStream), ErrorKind::kRuntime, "invalid configuration");
  CHECK_FAILS(cuda::launch("f", outside_mask_kernel, dim3(1, 65536), 32, 0, kStream), ErrorKind::kRuntime,
              "configuration");
  CHECK_FAILS(cuda::launch("g", outside_mask_kernel, 1, 1025, 0, kStream), ErrorKind::kRuntime, "configuration");
  test_sum();  // and the emulator goes on after them
}

void test_votes() {
  std::vector<unsigned> out(7 * 32);
  cuda::launch("votes", votes_kernel, 1, 32, 0, kStream, out.data());
  for (unsigned t = 0; t < 32; ++t) {
    const unsigned* mine = out.data() + 7 * t;
    CHECK(mine[0] == (t < 16 ? 0xaaaau : 0u));
    CHECK(mine[1] == (t < 16 ? 0u : 0x00f00000u));
    CHECK(mine[2] == 496);
    CHECK(mine[3] == (t % 8 == 0 ? t : t - 1));
    CHECK(mine[4] == 1 && mine[5] == 0 && mine[6] == 11);
  }
  // A warp of which half does not exist.
  std::vector<unsigned> some(7 * 20);
  emulator::run_grid("votes", 1, 20, 0, [&] { some[threadIdx.x] = __ballot_sync(0xffffffffu, 1); });
  for (unsigned t = 0; t < 20; ++t) CHECK(some[t] == 0xfffffu);
}

void test_atomics() {
  std::vector<int> histogram(3);
  int locked = 0;
  unsigned long long largest = 0;
  float total = 0.0f;
  double total_double = 0.0;
  __half2 pair = __floats2half2_rn(0.0f, 0.0f);
  cuda::launch("atomics", atomics_kernel, 2, 100, 0, kStream, histogram.data(), &largest, &total, &total_double,
               &locked, &pair);
  CHECK(histogram[0] == 67 && histogram[1] == 67 && histogram[2] == 66);
  CHECK(largest == 199ull << 33);
  CHECK_NEAR(total, 100.0, 0.0);
  CHECK_NEAR(total_double, 50.0, 0.0);
  CHECK(locked == 400);
  CHECK_NEAR(__low2float(pair), 200.0, 0.0);
  CHECK_NEAR(__high2float(pair), 400.0, 0.0);
}

void test_exchange() {
  std::vector<float> a(32), b(32), c(64);
  for (int i = 0; i < 32; ++i)
    a[static_cast<std::size_t>(i)] = static_cast<float>(i),
    b[static_cast<std::size_t>(i)] = static_cast<float>(i * i % 13);
  cuda::launch("exchange", exchange_kernel, 1, 32, 0, kStream, a.data(), b.data(), c.data());
  for (std::size_t i = 0; i < 8; ++i) {
    for (std::size_t j = 0; j < 8; ++j) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < 4; ++k) sum += a[i * 4 + k] * b[k * 8 + j];
      CHECK_NEAR(c[i * 8 + j], sum, 0.0);
    }
  }
}

void test_order() {
  const unsigned before = emulator::settings().seed;
  std::vector<int> first(96), second(96);
  int next = 0;
  emulator::settings().seed = 0;
  cuda::launch("order", order_kernel, 3, 32, 0, kStream, &next, first.data());
  for (int i = 0; i < 96; ++i) CHECK(first[static_cast<std::size_t>(i)] == i);
  next = 0;
  emulator::settings().seed = 5;
  cuda::launch("order", order_kernel, 3, 32, 0, kStream, &next, second.data());
  CHECK(first != second);
  std::vector<int> sorted = second;
  std::sort(sorted.begin(), sorted.end());
  CHECK(sorted == first);
  emulator::settings().seed = before;
}

void test_intrinsics() {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  CHECK(__float2int_rd(-1.5f) == -2 && __float2int_rz(-1.5f) == -1 && __float2int_ru(-1.5f) == -1 &&
        __float2int_rn(2.5f) == 2);
  CHECK(__float2int_rd(infinity) == 2147483647 && __float2int_rd(-1e20f) == -2147483647 - 1 &&
        __float2int_rd(nan) == 0);
  CHECK(__float2uint_rn(-3.0f) == 0u);
  CHECK(__brev(1u) == 0x80000000u && __clz(0) == 32 && __clz(1) == 31 && __ffs(8) == 4 && __popc(0xf0u) == 4);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7410u) == 0x77441100u);
  CHECK(__funnelshift_l(0x80000000u, 1u, 1u) == 3u && __funnelshift_r(0u, 1u, 1u) == 0x80000000u);
  CHECK(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2.0f);
  CHECK(min(3, 4) == 3 && max(3u, 4u) == 4u && max(nan, 1.0f) == 1.0f && max(2ll, 1ll) == 2ll);
  CHECK(__expf(0.0f) == 1.0f && __saturatef(nan) == 0.0f);
  CHECK(__half2float(__hfma(__float2half(3.0f), __float2half(4.0f), __float2half(-2.0f))) == 10.0f);
  CHECK(cuda::device_attribute("test", cudaDevAttrComputeCapabilityMajor, kStream) == 9);
}

void test_ring() {
  const int steps = 7;
  std::vector<int> from(steps * 64), expected(32), sums(64);
  for (std::size_t i = 0; i < from.size(); ++i) {
    from[i] = static_cast<int>(i * i % 101);
    expected[i % 32] += from[i];
  }
  const auto before = emulator::settings().seed;
  for (unsigned seed : {0u, 1u, 2u}) {
    emulator::settings().seed = seed;
    cuda::launch("ring", ring_kernel, 1, 96, 64 + 2 * 64 * 4, kStream, from.data(), sums.data(), steps, true);
    for (std::size_t i = 0; i < sums.size(); ++i) CHECK(sums[i] == expected[i % 32]);
  }
  emulator::settings().seed = before;
  CHECK_FAILS(
      cuda::launch("ring", ring_kernel, 1, 96, 64 + 2 * 64 * 4, kStream, from.data(), sums.data(), steps, false),
      ErrorKind::kRuntime, "waits for ever");
}

}  // namespace

int main() {
  test_ring();
  test_sum();
  test_shared_memory();
  test_wrong_kernels();
  test_votes();
  test_atomics();
  test_exchange();
  test_order();
  test_intrinsics();
  return check_result();
}
