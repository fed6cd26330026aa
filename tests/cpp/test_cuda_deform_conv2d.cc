// The forward pass on CUDA against the CPU's in double, on the same (rounded) numbers: every type, kernel and layout.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "centermask/deform_conv2d.h"
#include "check.h"
#include "cuda/runtime.h"
#include "device_memory.h"

namespace {

using namespace centermask;

struct Case {
  std::int64_t n, c, h, w, out, kernel_h, kernel_w, stride, padding, dilation, groups, offset_groups;
};

struct Variant {
  DType dtype;
  bool tf32;
  bool places_in_float;
  bool channels_last;      // x
  bool channels_last_out;  // output
  bool mask, bias, relu;
};

const Device kCuda{DeviceType::kCuda, 0};

// Allowed error, relative to the root mean square of the output. The bounds are on norms; single elements, with
// errors about normally distributed, get five times as much.
double tolerance(const Variant& v) {
  if (v.dtype == DType::kFloat16) return 1e-3;
  if (v.dtype == DType::kBFloat16) return 8e-3;
  return v.tf32 ? 1e-3 : 2e-6;
}

std::vector<double> normal(std::mt19937& random, std::int64_t count, double scale) {
  std::normal_distribution<double> distribution(0.0, scale);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = distribution(random);
  return values;
}

// Numbers of a type as raw bytes, and back; round() makes the doubles those that the type can hold.
std::vector<unsigned char> encode(const std::vector<double>& values, DType dtype) {
  const std::size_t item = static_cast<std::size_t>(dtype_size(dtype));
  std::vector<unsigned char> bytes(values.size() * item);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float value = static_cast<float>(values[i]);
    const __half half = __float2half_rn(value);
    const __nv_bfloat16 brain = __float2bfloat16_rn(value);
    const void* from = &value;
    if (dtype == DType::kFloat16) from = &half;
    if (dtype == DType::kBFloat16) from = &brain;
    std::memcpy(&bytes[i * item], from, item);
  }
  return bytes;
}

std::vector<double> decode(const std::vector<unsigned char>& bytes, DType dtype) {
  const std::size_t item = static_cast<std::size_t>(dtype_size(dtype));
  std::vector<double> values(bytes.size() / item);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kFloat16) {
      __half value;
      std::memcpy(&value, &bytes[i * item], item);
      values[i] = static_cast<double>(__half2float(value));
    } else if (dtype == DType::kBFloat16) {
      __nv_bfloat16 value;
      std::memcpy(&value, &bytes[i * item], item);
      values[i] = static_cast<double>(__bfloat162float(value));
    } else {
      float value;
      std::memcpy(&value, &bytes[i * item], item);
      values[i] = static_cast<double>(value);
    }
  }
  return values;
}

void round(std::vector<double>& values, DType dtype) { values = decode(encode(values, dtype), dtype); }

// [N, C, H, W] values in memory order [N, H, W, C], or back.
std::vector<double> reorder(const std::vector<double>& from, std::int64_t n, std::int64_t c, std::int64_t pixels,
                            bool back) {
  std::vector<double> to(from.size());
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < c; ++j) {
      for (std::int64_t p = 0; p < pixels; ++p) {
        const auto planar = static_cast<std::size_t>((i * c + j) * pixels + p);
        const auto last = static_cast<std::size_t>((i * pixels + p) * c + j);
        to[back ? planar : last] = from[back ? last : planar];
      }
    }
  }
  return to;
}

TensorView device_view(const DeviceBuffer<unsigned char>& buffer, DType dtype,
                       std::initializer_list<std::int64_t> shape, bool channels_last = false) {
  TensorView view = make_view(buffer.data(), dtype, shape, kCuda);
  if (channels_last) {
    view.stride[1] = 1;
    view.stride[3] = view.shape[1];
    view.stride[2] = view.shape[3] * view.shape[1];
    view.stride[0] = view.shape[2] * view.shape[3] * view.shape[1];
  }
  return view;
}

void run(const Case& s, const Variant& v, unsigned seed, bool strange_offsets) {
  const std::int64_t taps = s.kernel_h * s.kernel_w;
  const std::int64_t oh = (s.h + 2 * s.padding - s.dilation * (s.kernel_h - 1) - 1) / s.stride + 1;
  const std::int64_t ow = (s.w + 2 * s.padding - s.dilation * (s.kernel_w - 1) - 1) / s.stride + 1;
  DeformConv2dParams params;
  for (int i = 0; i < 2; ++i)
    params.stride[i] = s.stride, params.padding[i] = s.padding, params.dilation[i] = s.dilation;
  params.groups = s.groups;
  params.allow_tf32 = v.tf32;
  params.activation = v.relu ? Activation::kRelu : Activation::kNone;

  std::mt19937 random(seed);
  std::vector<double> x = normal(random, s.n * s.c * s.h * s.w, 1);
  std::vector<double> weight =
      normal(random, s.out * s.c / s.groups * taps, 1 / std::sqrt(static_cast<double>(s.c / s.groups * taps)));
  std::vector<double> offset = normal(random, s.n * 2 * s.offset_groups * taps * oh * ow, 2);
  std::vector<double> mask = normal(random, s.n * s.offset_groups * taps * oh * ow, 1);
  std::vector<double> bias = normal(random, s.out, 1);
  if (strange_offsets) {
    const double strange[] = {std::numeric_limits<double>::quiet_NaN(),
                              std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::infinity(),
                              1e30,
                              -1e30,
                              60000,
                              -1,
                              1,
                              0};
    for (std::size_t i = 0; i < offset.size(); i += 3) offset[i] = strange[i / 3 % 9];
  }
  const DType places = v.places_in_float ? DType::kFloat32 : v.dtype;
  round(x, v.dtype), round(weight, v.dtype), round(bias, v.dtype), round(offset, places), round(mask, places);

  // The CPU in double.
  const DType f64 = DType::kFloat64;
  const TensorView cpu_x = make_view(x.data(), f64, {s.n, s.c, s.h, s.w});
  const TensorView cpu_weight = make_view(weight.data(), f64, {s.out, s.c / s.groups, s.kernel_h, s.kernel_w});
  const TensorView cpu_offset = make_view(offset.data(), f64, {s.n, 2 * s.offset_groups * taps, oh, ow});
  const TensorView cpu_mask =
      v.mask ? make_view(mask.data(), f64, {s.n, s.offset_groups * taps, oh, ow}) : TensorView{};
  const TensorView cpu_bias = v.bias ? make_view(bias.data(), f64, {s.out}) : TensorView{};
  std::vector<double> expected(static_cast<std::size_t>(s.n * s.out * oh * ow));
  const DeformConv2dShape shape = deform_conv2d_shape(cpu_x, cpu_weight, cpu_offset, cpu_mask, cpu_bias, params);
  std::vector<char> cpu_memory(deform_conv2d_workspace_cpu(shape, 1, false));
  deform_conv2d_cpu(cpu_x, cpu_weight, nullptr, cpu_offset, cpu_mask, cpu_bias, params,
                    {cpu_memory.data(), cpu_memory.size()}, make_view(expected.data(), f64, {s.n, s.out, oh, ow}));

  const DeviceBuffer<unsigned char> dx(encode(v.channels_last ? reorder(x, s.n, s.c, s.h * s.w, false) : x, v.dtype));
  // The weight is channels-last where the output is.
  const DeviceBuffer<unsigned char> dweight(
      encode(v.channels_last_out ? reorder(weight, s.out, s.c / s.groups, taps, false) : weight, v.dtype));
  const DeviceBuffer<unsigned char> doffset(encode(offset, places)), dmask(encode(mask, places)),
      dbias(encode(bias, v.dtype));
  const DeviceBuffer<unsigned char> doutput(expected.size() * static_cast<std::size_t>(dtype_size(v.dtype)));
  const TensorView gx = device_view(dx, v.dtype, {s.n, s.c, s.h, s.w}, v.channels_last);
  const TensorView gweight =
      device_view(dweight, v.dtype, {s.out, s.c / s.groups, s.kernel_h, s.kernel_w}, v.channels_last_out);
  const TensorView goffset = device_view(doffset, places, {s.n, 2 * s.offset_groups * taps, oh, ow});
  const TensorView gmask = v.mask ? device_view(dmask, places, {s.n, s.offset_groups * taps, oh, ow}) : TensorView{};
  const TensorView gbias = v.bias ? device_view(dbias, v.dtype, {s.out}) : TensorView{};
  const TensorView goutput = device_view(doutput, v.dtype, {s.n, s.out, oh, ow}, v.channels_last_out);
  const DeviceBuffer<unsigned char> memory(deform_conv2d_workspace_cuda(gx, gweight, goffset, gmask, params));
  deform_conv2d_cuda(gx, gweight, goffset, gmask, gbias, params, {memory.data(), memory.size()}, goutput, {});

  std::vector<double> actual = decode(doutput.download(), v.dtype);
  if (v.channels_last_out) actual = reorder(actual, s.n, s.out, oh * ow, true);
  double square = 0, worst = 0, error_square = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(actual[i] - expected[i]);
    square += expected[i] * expected[i], error_square += error * error;
    if (!(error <= worst)) worst = error;
  }
  const double scale = std::sqrt(square / static_cast<double>(expected.size()));
  const double norm = expected.empty() ? 0 : std::sqrt(error_square / square);
  const bool good = expected.empty() || (worst <= 5 * tolerance(v) * scale && norm <= tolerance(v));
  if (!good || std::getenv("CENTERMASK_TEST_VERBOSE") != nullptr) {
    std::printf(
        "%s%s x %lld,%lld,%lld,%lld out %lld kernel %lldx%lld stride %lld dilation %lld groups %lld,%lld: worst "
        "%.3g norm %.3g\n",
        dtype_name(v.dtype), v.tf32 ? " tf32" : "", static_cast<long long>(s.n), static_cast<long long>(s.c),
        static_cast<long long>(s.h), static_cast<long long>(s.w), static_cast<long long>(s.out),
        static_cast<long long>(s.kernel_h), static_cast<long long>(s.kernel_w), static_cast<long long>(s.stride),
        static_cast<long long>(s.dilation), static_cast<long long>(s.groups), static_cast<long long>(s.offset_groups),
        worst / scale, norm);
  }
  CHECK(good);
}

void test_against_cpu() {
  // n, c, h, w, out, kernel, stride, padding, dilation, groups, offset groups
  const Case cases[] = {
      {1, 3, 7, 9, 5, 3, 3, 1, 1, 1, 1, 1},       // nothing fits
      {2, 64, 16, 16, 64, 3, 3, 1, 1, 1, 1, 1},   // patches
      {2, 72, 8, 9, 40, 3, 3, 2, 1, 1, 1, 1},     // a chunk that is not full
      {1, 16, 9, 8, 130, 3, 2, 1, 2, 2, 1, 2},    // wide, offset groups
      {1, 136, 5, 6, 70, 1, 1, 1, 0, 1, 1, 1},    // middle
      {1, 32, 12, 11, 24, 5, 5, 1, 2, 1, 2, 1},   // more taps than the table holds
      {1, 24, 6, 7, 12, 3, 3, 1, 1, 1, 2, 3},     // segments of both kinds of group
      {3, 8, 4, 5, 8, 3, 3, 1, 1, 1, 8, 1},       // depthwise
      {1, 16, 10, 12, 300, 2, 2, 1, 0, 1, 1, 1},  // two blocks of out channels
      {1, 64, 16, 16, 24, 3, 3, 1, 1, 1, 1, 1},   // on sm_90, in float32: two blocks share K and add up their sums
      {1, 128, 8, 16, 256, 3, 3, 1, 1, 1, 1, 1},  // the same in half precision
      {1, 32, 8, 16, 144, 3, 3, 1, 1, 1, 2, 1},   // weights of groups, in whole vectors
      {0, 8, 4, 5, 8, 3, 3, 1, 1, 1, 1, 1},
  };
  const Variant variants[] = {
      {DType::kFloat16, false, false, true, false, true, true, false},
      {DType::kFloat16, false, true, false, true, true, false, true},
      {DType::kBFloat16, false, false, true, true, false, true, false},
      {DType::kFloat32, false, true, true, false, true, true, true},
      {DType::kFloat32, true, true, false, false, true, true, false},
  };
  unsigned seed = 1;
  for (const Case& s : cases) {
    for (const Variant& v : variants) {
      run(s, v, seed, seed % 3 == 0);
      ++seed;
    }
  }
}

void test_errors() {
  const DeviceBuffer<unsigned char> memory(1 << 16);
  const TensorView x = device_view(memory, DType::kFloat16, {1, 8, 4, 4});
  const TensorView weight = device_view(memory, DType::kFloat16, {8, 8, 3, 3});
  TensorView offset = device_view(memory, DType::kFloat16, {1, 18, 4, 4});
  const TensorView output = device_view(memory, DType::kFloat16, {1, 8, 4, 4});
  DeformConv2dParams params;
  params.padding[0] = params.padding[1] = 1;
  const std::size_t bytes = deform_conv2d_workspace_cuda(x, weight, offset, {}, params);
  const auto value = ErrorKind::kValue, type = ErrorKind::kType;
  CHECK_FAILS(deform_conv2d_cuda(x, weight, offset, {}, {}, params, {memory.data(), bytes - 1}, output, {}), value,
              "the workspace must have");
  TensorView wrong = output;
  wrong.dtype = DType::kFloat32;
  CHECK_FAILS(deform_conv2d_cuda(x, weight, offset, {}, {}, params, {memory.data(), bytes}, wrong, {}), value,
              "output must be row-major or channels-last float16 [1, 8, 4, 4]");
  wrong = output;
  wrong.stride[0] *= 2, wrong.stride[1] *= 2;
  CHECK_FAILS(deform_conv2d_cuda(x, weight, offset, {}, {}, params, {memory.data(), bytes}, wrong, {}), value,
              "output must be row-major or channels-last float16 [1, 8, 4, 4]");
  offset.device = Device{};
  CHECK_FAILS(deform_conv2d_workspace_cuda(x, weight, offset, {}, params), value,
              "deform_conv2d: offset must be on the device of x (cuda:0), got cpu");
  const auto cpu = [](TensorView view) {
    view.device = Device{};
    return view;
  };
  CHECK_FAILS(deform_conv2d_workspace_cuda(cpu(x), cpu(weight), offset, {}, params), value, "x must be on a CUDA");
  TensorView wide = x;
  wide.dtype = DType::kFloat64;
  CHECK_FAILS(deform_conv2d_workspace_cuda(wide, weight, offset, {}, params), type,
              "x must be float32, float16 or bfloat16 on CUDA, got float64");
}

// Strides of dimensions with one element do not matter: such an x is read in place, as if they were those of a dense
// one.
void test_strides_of_one() {
  const DeviceBuffer<unsigned char> memory(1 << 16);
  for (const int one : {0, 2, 3}) {
    std::int64_t shape[4] = {2, 16, 3, 5};
    shape[one] = 1;
    const TensorView dense =
        device_view(memory, DType::kFloat16, {shape[0], shape[1], shape[2], shape[3]}, /*channels_last=*/true);
    const TensorView weight = device_view(memory, DType::kFloat16, {8, 16, 3, 3});
    const TensorView offset = device_view(memory, DType::kFloat16, {shape[0], 18, shape[2], shape[3]});
    DeformConv2dParams params;
    params.padding[0] = params.padding[1] = 1;
    const std::size_t in_place = deform_conv2d_workspace_cuda(dense, weight, offset, {}, params);
    for (const std::int64_t stride : {std::int64_t{1}, std::int64_t{7}, std::int64_t{-3}, std::int64_t{1} << 40}) {
      TensorView x = dense;
      x.stride[one] = stride;
      CHECK(deform_conv2d_workspace_cuda(x, weight, offset, {}, params) == in_place);
    }
    TensorView odd = dense;  // where it does matter
    odd.stride[one == 3 ? 2 : 3] += 1;
    CHECK(deform_conv2d_workspace_cuda(odd, weight, offset, {}, params) > in_place);
  }
}

#if defined(CENTERMASK_CUDA_EMULATED)
// A card that runs what was made for another one: PTX of sm_75, and sm_90's code without wgmma.
void test_other_code() {
  const DeviceBuffer<unsigned char> memory(1 << 16);
  const TensorView x = device_view(memory, DType::kFloat16, {1, 8, 4, 4});
  const TensorView weight = device_view(memory, DType::kFloat16, {300, 8, 1, 1});
  const TensorView offset = device_view(memory, DType::kFloat16, {1, 2, 4, 4});
  const auto bytes = [&] { return deform_conv2d_workspace_cuda(x, weight, offset, {}, {}); };
  cuda::emulator::Settings& settings = cuda::emulator::settings();
  const cuda::emulator::Settings before = settings;
  const Case shape = {1, 16, 9, 8, 130, 3, 2, 1, 2, 2, 1, 2};
  const Variant variant = {DType::kFloat16, false, false, true, false, true, true, false};

  settings.compute_capability = 75;
  const std::size_t simt = bytes();
  settings.compute_capability = 90;
  CHECK(bytes() != simt);  // tiles of sm_90 have more out channels
  settings.code_capability = 75;
  CHECK(bytes() == simt);
  run(shape, variant, 1, false);
  settings.code_capability = 100;  // never more than the card
  CHECK(bytes() != simt);
  settings.code_capability = 0;
  settings.sm90a = false;
  CHECK(bytes() != simt);
  run(shape, variant, 1, false);
  settings = before;
}
#endif

}  // namespace

int main() {
  if (!device_memory::available()) return device_memory::skip();
#if defined(CENTERMASK_CUDA_EMULATED)
  for (int capability : {75, 80, 86, 90}) {
    cuda::emulator::settings().compute_capability = capability;
    test_against_cpu();
  }
  test_other_code();
#else
  test_against_cpu();
#endif
  test_strides_of_one();
  test_errors();
  return check_result();
}
