// deform_conv2d's backward on CUDA against the CPU core in float64, which test_deform_conv2d checks against loops.
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "centermask/deform_conv2d.h"
#include "check.h"
#include "device_memory.h"
#include "strided_tensor.h"
#if defined(CENTERMASK_CUDA_EMULATED)
#include "cuda_emulator.h"
#endif

namespace {

using namespace centermask;
using namespace strided;

struct Case {
  std::int64_t n, c, h, w, out, kernel_h, kernel_w, stride, padding, dilation, groups, offset_groups;
  bool mask;
  bool grid = false;  // offsets are multiples of 1/2: on kinks and edges; some are NaN, infinite or far away
};

// Gradients of x, weight, offset, mask, bias.
constexpr int kGradients = 5;
const char* const kNames[kGradients] = {"x", "weight", "offset", "mask", "bias"};

struct Problem {
  Case shape;
  std::int64_t oh, ow, taps;
  DeformConv2dParams params;
  std::vector<double> x, weight, offset, mask, grad_output;
  std::vector<double> expected[kGradients];
};

TensorView row_major(const std::vector<double>& values, std::initializer_list<std::int64_t> shape) {
  return make_view(const_cast<double*>(values.data()), DType::kFloat64, shape);
}

// All values are such that T holds them (offset and mask: O).
template <class T, class O>
Problem make_problem(const Case& s, unsigned seed) {
  Problem p;
  p.shape = s;
  p.taps = s.kernel_h * s.kernel_w;
  p.oh = (s.h + 2 * s.padding - s.dilation * (s.kernel_h - 1) - 1) / s.stride + 1;
  p.ow = (s.w + 2 * s.padding - s.dilation * (s.kernel_w - 1) - 1) / s.stride + 1;
  for (int i = 0; i < 2; ++i) {
    p.params.stride[i] = s.stride, p.params.padding[i] = s.padding, p.params.dilation[i] = s.dilation;
  }
  p.params.groups = s.groups;
  std::mt19937 random(seed);
  const auto fill = [&](std::vector<double>& to, std::int64_t count, double scale) {
    std::normal_distribution<double> normal(0.0, scale);
    to.resize(static_cast<std::size_t>(count));
    for (double& value : to) value = normal(random);
  };
  const auto round_to = [](std::vector<double>& values, auto zero) {
    for (double& value : values) value = read(convert<decltype(zero)>(value));
  };
  fill(p.x, s.n * s.c * s.h * s.w, 1);
  fill(p.weight, s.out * s.c / s.groups * p.taps, 0.3);
  fill(p.offset, s.n * 2 * s.offset_groups * p.taps * p.oh * p.ow, 1.5);
  fill(p.mask, s.mask ? s.n * s.offset_groups * p.taps * p.oh * p.ow : 0, 1);
  fill(p.grad_output, s.n * s.out * p.oh * p.ow, 1);
  if (s.grid) {
    const double odd[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                          -std::numeric_limits<double>::infinity(), 6e4, -6e4};
    for (std::size_t i = 0; i < p.offset.size(); ++i) {
      p.offset[i] = i % 23 == 5 ? odd[i / 23 % 5] : std::rint(2 * p.offset[i]) / 2;
    }
  }
  round_to(p.x, T{}), round_to(p.weight, T{}), round_to(p.grad_output, T{});
  round_to(p.offset, O{}), round_to(p.mask, O{});

  const TensorView x = row_major(p.x, {s.n, s.c, s.h, s.w});
  const TensorView weight = row_major(p.weight, {s.out, s.c / s.groups, s.kernel_h, s.kernel_w});
  const TensorView offset = row_major(p.offset, {s.n, 2 * s.offset_groups * p.taps, p.oh, p.ow});
  const TensorView mask = s.mask ? row_major(p.mask, {s.n, s.offset_groups * p.taps, p.oh, p.ow}) : TensorView{};
  const TensorView grad = row_major(p.grad_output, {s.n, s.out, p.oh, p.ow});
  const TensorView bias = make_view(nullptr, DType::kFloat64, {s.out});
  DeformConv2dGradients wanted;
  TensorView* const views[kGradients] = {&wanted.x, &wanted.weight, &wanted.offset, &wanted.mask, &wanted.bias};
  const TensorView* const like[kGradients] = {&x, &weight, &offset, &mask, &bias};
  for (int i = 0; i < kGradients; ++i) {
    if (!like[i]->present()) continue;
    p.expected[i].resize(static_cast<std::size_t>(like[i]->size()));
    *views[i] = *like[i];
    views[i]->data = p.expected[i].data();
  }
  const DeformConv2dShape shape = deform_conv2d_shape(x, weight, offset, mask, {}, p.params);
  std::vector<char> memory(deform_conv2d_backward_workspace_cpu(shape, 1));
  deform_conv2d_backward_cpu(grad, x, weight, offset, mask, p.params, {memory.data(), memory.size()}, wanted);
  return p;
}

struct Options {
  Order x = Order::kRowMajor, grad = Order::kRowMajor, grad_x = Order::kRowMajor, rest = Order::kRowMajor;
  bool tf32 = false, deterministic = false;
  bool wanted[kGradients] = {true, true, true, true, true};
};

struct Results {
  std::vector<double> gradient[kGradients];
};

template <class T, class O>
Results run(const Problem& p, const Options& options) {
  const Case& s = p.shape;
  const Strided<T> x(p.x, {s.n, s.c, s.h, s.w}, options.x);
  const Strided<T> weight(p.weight, {s.out, s.c / s.groups, s.kernel_h, s.kernel_w}, options.rest);
  const Strided<O> offset(p.offset, {s.n, 2 * s.offset_groups * p.taps, p.oh, p.ow}, options.rest);
  const Strided<O> mask(p.mask, {s.n, s.mask ? s.offset_groups * p.taps : 0, p.oh, p.ow}, options.rest);
  const Strided<T> grad(p.grad_output, {s.n, s.out, p.oh, p.ow}, options.grad);
  const TensorView mask_view = s.mask ? mask.view : TensorView{};
  const Strided<T> grad_x({s.n, s.c, s.h, s.w}, options.grad_x);
  const Strided<T> grad_weight({s.out, s.c / s.groups, s.kernel_h, s.kernel_w}, Order::kRowMajor);
  const Strided<O> grad_offset({s.n, 2 * s.offset_groups * p.taps, p.oh, p.ow}, Order::kRowMajor);
  const Strided<O> grad_mask({s.n, s.offset_groups * p.taps, p.oh, p.ow}, Order::kRowMajor);
  const Strided<T> grad_bias({s.out}, Order::kRowMajor);
  DeformConv2dGradients wanted;
  if (options.wanted[0]) wanted.x = grad_x.view;
  if (options.wanted[1]) wanted.weight = grad_weight.view;
  if (options.wanted[2]) wanted.offset = grad_offset.view;
  if (options.wanted[3] && s.mask) wanted.mask = grad_mask.view;
  if (options.wanted[4]) wanted.bias = grad_bias.view;
  DeformConv2dParams params = p.params;
  params.allow_tf32 = options.tf32, params.deterministic = options.deterministic;
  const DeviceBuffer<unsigned char> memory(
      deform_conv2d_backward_workspace_cuda(grad.view, x.view, weight.view, offset.view, mask_view, params, wanted));
  deform_conv2d_backward_cuda(grad.view, x.view, weight.view, offset.view, mask_view, params,
                              {memory.data(), memory.bytes()}, wanted, {});
  Results results;
  results.gradient[0] = wanted.x.present() ? grad_x.download() : std::vector<double>();
  results.gradient[1] = wanted.weight.present() ? grad_weight.download() : std::vector<double>();
  results.gradient[2] = wanted.offset.present() ? grad_offset.download() : std::vector<double>();
  results.gradient[3] = wanted.mask.present() ? grad_mask.download() : std::vector<double>();
  results.gradient[4] = wanted.bias.present() ? grad_bias.download() : std::vector<double>();
  return results;
}

// ||actual - expected|| <= tolerance * ||expected||
bool close(const std::vector<double>& actual, const std::vector<double>& expected, double tolerance,
           const std::string& what) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const bool good = actual.size() == expected.size() && std::sqrt(error) <= tolerance * std::sqrt(norm);
  if (!good) std::printf("%s: relative error %.3g, allowed %.3g\n", what.c_str(), std::sqrt(error / norm), tolerance);
  return good;
}

const Case kCases[] = {
    {2, 16, 6, 5, 16, 3, 3, 1, 1, 1, 1, 1, true},       // everything a multiple of 8
    {1, 72, 5, 6, 24, 3, 3, 1, 1, 1, 1, 1, true},       // two chunks of channels
    {3, 8, 4, 7, 136, 1, 1, 1, 0, 1, 1, 1, true},       // two tiles of positions, three slices of out channels
    {1, 3, 5, 5, 5, 3, 2, 2, 1, 1, 1, 1, false},        // nothing a multiple of anything
    {2, 24, 6, 4, 12, 3, 3, 1, 2, 2, 4, 2, true},       // two groups in an offset group
    {1, 12, 6, 6, 8, 3, 3, 3, 1, 1, 4, 6, true},        // groups and offset groups cut across each other
    {1, 20, 4, 5, 280, 1, 2, 1, 1, 1, 2, 1, true},      // 140 out channels a group: resident is off
    {2, 9, 7, 6, 10, 3, 3, 1, 1, 1, 1, 3, true, true},  // on kinks, edges, far outside
    {1, 8, 1, 1, 300, 1, 1, 1, 0, 1, 1, 1, false},      // two tiles of out channels
};

template <class T, class O>
void test_type(const Options& options, double tolerance, const std::string& what) {
  unsigned seed = 1;
  for (const Case& s : kCases) {
    const Problem p = make_problem<T, O>(s, seed++);
    const Results results = run<T, O>(p, options);
    for (int i = 0; i < kGradients; ++i) {
      const std::string name = what + " case " + std::to_string(seed - 1) + " grad " + kNames[i];
      CHECK(close(results.gradient[i], p.expected[i], tolerance, name));
    }
  }
}

// The goals of accuracy; half precision rounds the results, and, in the gradient of weight, the samples.
constexpr double kFloat = 1e-5, kTf32 = 1e-3, kHalf = 3e-3, kBFloat = 2.4e-2;

void test_all(const std::string& what) {
  Options plain, tf32, last, gaps, fixed;
  tf32.tf32 = true;
  last.x = last.grad = last.grad_x = Order::kChannelsLast;
  gaps.x = gaps.grad = gaps.rest = Order::kGaps;
  gaps.grad_x = Order::kChannelsLast;
  fixed.deterministic = true;
  test_type<float, float>(plain, kFloat, what + " float");
  test_type<float, float>(tf32, kTf32, what + " tf32");
  test_type<float, float>(last, kFloat, what + " float channels-last");
  test_type<float, float>(fixed, kFloat, what + " float deterministic");
  test_type<__half, float>(plain, kHalf, what + " half");
  test_type<__half, __half>(last, kHalf, what + " half channels-last");
  test_type<__half, float>(gaps, kHalf, what + " half with gaps");
  test_type<__nv_bfloat16, __nv_bfloat16>(plain, kBFloat, what + " bfloat");
  test_type<__nv_bfloat16, float>(fixed, kBFloat, what + " bfloat deterministic");
}

// Where blocks take several taps, or several chunks of channels.
void test_large() {
  const Case cases[] = {{4, 8, 64, 64, 8, 3, 3, 1, 1, 1, 1, 1, true}, {1, 1100, 4, 4, 72, 2, 1, 1, 0, 1, 1, 1, true}};
  for (const Case& s : cases) {
    const Problem p = make_problem<__half, __half>(s, 11);
    const Results results = run<__half, __half>(p, {});
    for (int i = 0; i < kGradients; ++i) {
      CHECK(close(results.gradient[i], p.expected[i], kHalf, std::to_string(s.c) + " channels grad " + kNames[i]));
    }
  }
}

// Each gradient alone is what it is together with the others (grad_x is summed in any order without deterministic).
void test_alone() {
  Options options;
  options.deterministic = true;
  for (int number : {0, 4}) {
    const Problem p = make_problem<__half, float>(kCases[number], 7);
    const Results all = run<__half, float>(p, options);
    for (int i = 0; i < kGradients; ++i) {
      Options one = options;
      for (int k = 0; k < kGradients; ++k) one.wanted[k] = k == i;
      const Results results = run<__half, float>(p, one);
      for (int k = 0; k < kGradients; ++k) {
        CHECK(results.gradient[k] == (k == i ? all.gradient[k] : std::vector<double>()));
      }
    }
  }
}

// The same bits whatever the order of the blocks: everything but grad_x always, grad_x on request.
void test_same_bits() {
  const Case s = {2, 40, 9, 8, 16, 3, 3, 1, 1, 1, 1, 1, true};
  const Problem p = make_problem<float, float>(s, 3);
  for (bool deterministic : {false, true}) {
    Options options;
    options.deterministic = deterministic;
    const Results first = run<float, float>(p, options);
    bool differs = false;
    for (unsigned seed = 1; seed < 4; ++seed) {
#if defined(CENTERMASK_CUDA_EMULATED)
      const unsigned before = cuda::emulator::settings().seed;
      cuda::emulator::settings().seed = seed + 100;
#endif
      const Results again = run<float, float>(p, options);
#if defined(CENTERMASK_CUDA_EMULATED)
      cuda::emulator::settings().seed = before;
#endif
      for (int i = 1; i < kGradients; ++i) CHECK(again.gradient[i] == first.gradient[i]);
      if (again.gradient[0] != first.gradient[0]) differs = true;
    }
    if (deterministic) CHECK(!differs);
#if defined(CENTERMASK_CUDA_EMULATED)
    if (!deterministic) CHECK(differs);  // or the test would show nothing
#endif
  }
}

// Fixed point takes its unit from the data: tiny and huge gradients come out as well.
void test_scales() {
  Options options;
  options.deterministic = true;
  for (double scale : {1e-30, 1e-12, 1e12, 1e30}) {
    Problem p = make_problem<float, float>(kCases[0], 5);
    for (double& value : p.grad_output) value = read(convert<float>(value * scale));
    const Results results = run<float, float>(p, options);
    for (double& value : p.expected[0]) value *= scale;
    CHECK(close(results.gradient[0], p.expected[0], kFloat, "scale " + std::to_string(scale)));
  }
  Problem p = make_problem<float, float>(kCases[0], 5);
  p.grad_output[3] = std::numeric_limits<double>::infinity();
  const Results results = run<float, float>(p, options);
  bool all_nan = true;
  for (double value : results.gradient[0]) all_nan = all_nan && std::isnan(value);
  CHECK(all_nan);
}

void test_empty_batch() {
  const Case s = {0, 8, 5, 4, 8, 3, 3, 1, 1, 1, 1, 1, true};
  Problem p;
  p.shape = s, p.oh = 5, p.ow = 4, p.taps = 9;
  p.params.padding[0] = p.params.padding[1] = 1;
  p.weight.assign(8 * 8 * 9, 1);
  const Results results = run<float, float>(p, {});
  CHECK(results.gradient[1] == std::vector<double>(8 * 8 * 9, 0.0));
  CHECK(results.gradient[4] == std::vector<double>(8, 0.0));
}

void test_errors() {
  const Device device{DeviceType::kCuda, 0};
  float memory = 0;  // never looked at
  const auto view = [&](std::initializer_list<std::int64_t> shape) {
    return make_view(&memory, DType::kFloat32, shape, device);
  };
  const TensorView x = view({2, 4, 5, 6}), weight = view({3, 4, 3, 3}), offset = view({2, 18, 5, 6});
  const TensorView grad = view({2, 3, 5, 6});
  DeformConv2dParams params;
  params.padding[0] = params.padding[1] = 1;
  DeformConv2dGradients wanted;
  wanted.x = x;
  const auto value = ErrorKind::kValue;
  CHECK_FAILS(deform_conv2d_backward_cuda(grad, x, weight, offset, {}, params, {}, wanted, {}), value,
              "workspace must have");
  CHECK_FAILS(deform_conv2d_backward_cuda(view({2, 3, 6, 5}), x, weight, offset, {}, params, {}, wanted, {}), value,
              "grad_output must be [2, 3, 5, 6], got [2, 3, 6, 5]");
  CHECK_FAILS(deform_conv2d_backward_cuda(grad, x, weight, offset, {}, params, {}, wanted, {nullptr, 1}), value,
              "x must be on the stream's device, 1, got 0");
  TensorView on_cpu = grad;
  on_cpu.device = {};
  CHECK_FAILS(deform_conv2d_backward_cuda(on_cpu, x, weight, offset, {}, params, {}, wanted, {}), value,
              "grad_output must be on the device of x");
  DeformConv2dGradients wrong = wanted;
  wrong.x.stride[0] += 1;
  CHECK_FAILS(deform_conv2d_backward_cuda(grad, x, weight, offset, {}, params, {}, wrong, {}), value,
              "the gradient of x must be row-major or dense channels-last float32 [2, 4, 5, 6]");
  wrong = {};
  wrong.mask = view({2, 9, 5, 6});
  CHECK_FAILS(deform_conv2d_backward_cuda(grad, x, weight, offset, {}, params, {}, wrong, {}), value,
              "there is no mask to take the gradient of");
}

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
#if defined(CENTERMASK_CUDA_EMULATED)
  for (int capability : {75, 80, 90}) {
    cuda::emulator::settings().compute_capability = capability;
    // sm_80 and sm_90 run the same kernels.
    if (capability == 80) test_type<__nv_bfloat16, float>({}, kBFloat, "sm_80");
    if (capability != 80) test_all("sm_" + std::to_string(capability));
  }
#else
  test_all("device");
#endif
  test_large();
  test_alone();
  test_same_bits();
  test_scales();
  test_empty_batch();
  test_errors();
  return check_result();
}
