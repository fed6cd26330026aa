// Forward and backward against plain loops in double, on every instruction set, element type and number of threads.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "centermask/deform_conv2d.h"
#include "centermask/isa.h"
#include "check.h"

namespace {

using namespace centermask;

struct Case {
  std::int64_t n, c, h, w, out, kernel, stride, padding, dilation, groups, offset_groups;
  bool mask;
};

template <class T>
constexpr DType kType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

// All tensors of a case in one element type, row-major.
template <class T>
struct Tensors {
  std::vector<T> x, weight, offset, mask, bias, grad;
};

struct Problem {
  Case shape;
  std::int64_t oh, ow, taps;
  DeformConv2dParams params;
  Tensors<double> t;
};

Problem make_problem(const Case& s, unsigned seed) {
  Problem p;
  p.shape = s;
  p.taps = s.kernel * s.kernel;
  p.oh = (s.h + 2 * s.padding - s.dilation * (s.kernel - 1) - 1) / s.stride + 1;
  p.ow = (s.w + 2 * s.padding - s.dilation * (s.kernel - 1) - 1) / s.stride + 1;
  for (int i = 0; i < 2; ++i) {
    p.params.stride[i] = s.stride, p.params.padding[i] = s.padding, p.params.dilation[i] = s.dilation;
  }
  p.params.groups = s.groups;
  std::mt19937 random(seed);
  // Values that float holds exactly, so that every element type computes the same problem.
  const auto fill = [&](std::vector<double>& to, std::int64_t count, double scale) {
    std::normal_distribution<float> normal(0.0F, static_cast<float>(scale));
    to.resize(static_cast<std::size_t>(count));
    for (double& value : to) value = static_cast<double>(normal(random));
  };
  fill(p.t.x, s.n * s.c * s.h * s.w, 1);
  fill(p.t.weight, s.out * s.c / s.groups * p.taps, 1 / std::sqrt(static_cast<double>(s.c / s.groups * p.taps)));
  fill(p.t.offset, s.n * 2 * s.offset_groups * p.taps * p.oh * p.ow, 2);
  fill(p.t.mask, s.mask ? s.n * s.offset_groups * p.taps * p.oh * p.ow : 0, 1);
  fill(p.t.bias, s.out, 1);
  fill(p.t.grad, s.n * s.out * p.oh * p.ow, 1);
  return p;
}

// The definition, one scalar at a time: each sample as a sum over all pixels of the image that are nearer than 1.
void reference(const Problem& p, std::vector<double>& output, Tensors<double>& g) {
  const Case& s = p.shape;
  const std::int64_t group_in = s.c / s.groups, group_out = s.out / s.groups;
  output.assign(static_cast<std::size_t>(s.n * s.out * p.oh * p.ow), 0);
  g.x.assign(p.t.x.size(), 0), g.weight.assign(p.t.weight.size(), 0), g.offset.assign(p.t.offset.size(), 0);
  g.mask.assign(p.t.mask.size(), 0), g.bias.assign(p.t.bias.size(), 0);
  for (std::int64_t n = 0; n < s.n; ++n) {
    for (std::int64_t o = 0; o < s.out; ++o) {
      for (std::int64_t y = 0; y < p.oh; ++y) {
        for (std::int64_t x = 0; x < p.ow; ++x) {
          const auto at = static_cast<std::size_t>(((n * s.out + o) * p.oh + y) * p.ow + x);
          const double grad = p.t.grad[at];
          output[at] += p.t.bias[static_cast<std::size_t>(o)];
          g.bias[static_cast<std::size_t>(o)] += grad;
          for (std::int64_t ci = 0; ci < group_in; ++ci) {
            const std::int64_t c = o / group_out * group_in + ci, og = c / (s.c / s.offset_groups);
            for (std::int64_t tap = 0; tap < p.taps; ++tap) {
              const std::int64_t channel = (n * s.offset_groups + og) * p.taps + tap, place = y * p.ow + x;
              const auto dy_at = static_cast<std::size_t>(2 * channel * p.oh * p.ow + place);
              const auto dx_at = dy_at + static_cast<std::size_t>(p.oh * p.ow);
              const auto mask_at = static_cast<std::size_t>(channel * p.oh * p.ow + place);
              const auto weight_at = static_cast<std::size_t>((o * group_in + ci) * p.taps + tap);
              const double sy =
                  static_cast<double>(y * s.stride - s.padding + tap / s.kernel * s.dilation) + p.t.offset[dy_at];
              const double sx =
                  static_cast<double>(x * s.stride - s.padding + tap % s.kernel * s.dilation) + p.t.offset[dx_at];
              const double mask = s.mask ? p.t.mask[mask_at] : 1.0;
              const double weight = p.t.weight[weight_at];
              double value = 0, by_y = 0, by_x = 0;
              for (std::int64_t py = 0; py < s.h; ++py) {
                for (std::int64_t px = 0; px < s.w; ++px) {
                  const double ty = sy - static_cast<double>(py), tx = sx - static_cast<double>(px);
                  if (!(std::fabs(ty) < 1 && std::fabs(tx) < 1)) continue;
                  const auto x_at = static_cast<std::size_t>(((n * s.c + c) * s.h + py) * s.w + px);
                  const double hy = 1 - std::fabs(ty), hx = 1 - std::fabs(tx), pixel = p.t.x[x_at];
                  value += hy * hx * pixel;
                  by_y += (ty > 0 ? -1 : 1) * hx * pixel;
                  by_x += (tx > 0 ? -1 : 1) * hy * pixel;
                  g.x[x_at] += grad * weight * mask * hy * hx;
                }
              }
              output[at] += weight * mask * value;
              g.weight[weight_at] += grad * mask * value;
              g.offset[dy_at] += grad * weight * mask * by_y;
              g.offset[dx_at] += grad * weight * mask * by_x;
              if (s.mask) g.mask[mask_at] += grad * weight * value;
            }
          }
        }
      }
    }
  }
}

template <class T>
TensorView view(std::vector<T>& values, std::initializer_list<std::int64_t> shape) {
  return make_view(values.data(), kType<T>, shape);
}

template <class T>
bool near(const std::vector<T>& actual, const std::vector<double>& expected, double tolerance,
          const std::string& what) {
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(static_cast<double>(actual[i]) - expected[i]);
    if (!(error <= worst)) worst = error;
  }
  if (!(worst <= tolerance)) std::printf("%s: error %.3g, allowed %.3g\n", what.c_str(), worst, tolerance);
  return worst <= tolerance;
}

// The forward result, for comparing numbers of threads.
template <class T>
std::vector<T> run(const Problem& p, const std::vector<double>& output, const Tensors<double>& gradients,
                   const ParallelFor& parallel_for, const std::string& what) {
  const Case& s = p.shape;
  Tensors<T> t;
  const auto convert = [](const std::vector<double>& from) { return std::vector<T>(from.begin(), from.end()); };
  t = {convert(p.t.x),    convert(p.t.weight), convert(p.t.offset),
       convert(p.t.mask), convert(p.t.bias),   convert(p.t.grad)};
  const TensorView x = view(t.x, {s.n, s.c, s.h, s.w});
  const TensorView weight = view(t.weight, {s.out, s.c / s.groups, s.kernel, s.kernel});
  const TensorView offset = view(t.offset, {s.n, 2 * s.offset_groups * p.taps, p.oh, p.ow});
  const TensorView mask = s.mask ? view(t.mask, {s.n, s.offset_groups * p.taps, p.oh, p.ow}) : TensorView{};
  const TensorView bias = view(t.bias, {s.out}), grad = view(t.grad, {s.n, s.out, p.oh, p.ow});
  const DeformConv2dShape shape = deform_conv2d_shape(x, weight, offset, mask, bias, p.params);
  // Rounding: sums of up to some hundred terms of size 1, and map-sized sums for the gradient of the weight.
  const double tolerance = sizeof(T) == 8 ? 1e-11 : 1e-4;

  std::vector<T> result(output.size()), again(output.size());
  std::vector<char> memory(deform_conv2d_workspace_cpu(shape, parallel_for.threads, false));
  deform_conv2d_cpu(x, weight, nullptr, offset, mask, bias, p.params, {memory.data(), memory.size()},
                    view(result, {s.n, s.out, p.oh, p.ow}), parallel_for);
  CHECK(near(result, output, tolerance, what + " forward"));

  std::vector<char> packed(deform_conv2d_packed_bytes_cpu(weight, p.params));
  deform_conv2d_pack_cpu(weight, p.params, packed.data(), parallel_for);
  memory.assign(deform_conv2d_workspace_cpu(shape, parallel_for.threads, true), 0);
  deform_conv2d_cpu(x, weight, packed.data(), offset, mask, bias, p.params, {memory.data(), memory.size()},
                    view(again, {s.n, s.out, p.oh, p.ow}), parallel_for);
  CHECK(again == result);

  // In bfloat16, where that is possible: weights and samples are off by up to 2^-9 of themselves each.
  DeformConv2dParams narrow = p.params;
  narrow.allow_bf16 = true;
  const bool uses_bf16 = deform_conv2d_uses_bf16_cpu(weight, narrow);
  DeformConv2dShape narrow_shape = shape;
  narrow_shape.params = narrow;
  packed.assign(deform_conv2d_packed_bytes_cpu(weight, narrow), 0);
  deform_conv2d_pack_cpu(weight, narrow, packed.data(), parallel_for);
  memory.assign(deform_conv2d_workspace_cpu(narrow_shape, parallel_for.threads, true), 0);
  deform_conv2d_cpu(x, weight, packed.data(), offset, mask, bias, narrow, {memory.data(), memory.size()},
                    view(again, {s.n, s.out, p.oh, p.ow}), parallel_for);
  CHECK(uses_bf16 ? near(again, output, 0.03, what + " bf16") && again != result : again == result);

  Tensors<T> g{std::vector<T>(t.x.size()),    std::vector<T>(t.weight.size()), std::vector<T>(t.offset.size()),
               std::vector<T>(t.mask.size()), std::vector<T>(t.bias.size()),   {}};
  DeformConv2dGradients wanted;
  wanted.x = x, wanted.x.data = g.x.data();
  wanted.weight = weight, wanted.weight.data = g.weight.data();
  wanted.offset = offset, wanted.offset.data = g.offset.data();
  if (s.mask) wanted.mask = mask, wanted.mask.data = g.mask.data();
  wanted.bias = bias, wanted.bias.data = g.bias.data();
  memory.assign(deform_conv2d_backward_workspace_cpu(shape, parallel_for.threads), 0);
  const Workspace workspace{memory.data(), memory.size()};
  deform_conv2d_backward_cpu(grad, x, weight, offset, mask, p.params, workspace, wanted, parallel_for);
  CHECK(near(g.x, gradients.x, tolerance, what + " grad x"));
  CHECK(near(g.weight, gradients.weight, tolerance, what + " grad weight"));
  CHECK(near(g.offset, gradients.offset, tolerance, what + " grad offset"));
  CHECK(near(g.mask, gradients.mask, tolerance, what + " grad mask"));
  CHECK(near(g.bias, gradients.bias, tolerance, what + " grad bias"));

  // Each gradient alone is what it is together with the others.
  for (int which = 0; which < 5; ++which) {
    Tensors<T> one = g;
    DeformConv2dGradients only;
    if (which == 0) only.x = wanted.x, only.x.data = one.x.data(), one.x.assign(one.x.size(), T(7));
    if (which == 1)
      only.weight = wanted.weight, only.weight.data = one.weight.data(), one.weight.assign(one.weight.size(), T(7));
    if (which == 2)
      only.offset = wanted.offset, only.offset.data = one.offset.data(), one.offset.assign(one.offset.size(), T(7));
    if (which == 3 && s.mask)
      only.mask = wanted.mask, only.mask.data = one.mask.data(), one.mask.assign(one.mask.size(), T(7));
    if (which == 4) only.bias = wanted.bias, only.bias.data = one.bias.data(), one.bias.assign(one.bias.size(), T(7));
    deform_conv2d_backward_cpu(grad, x, weight, offset, mask, p.params, workspace, only, parallel_for);
    CHECK(one.x == g.x && one.weight == g.weight && one.offset == g.offset && one.mask == g.mask && one.bias == g.bias);
  }
  return result;
}

void test_against_loops() {
  const Case cases[] = {
      {1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, true},    {2, 3, 5, 6, 5, 3, 1, 1, 1, 1, 1, true},
      {1, 17, 7, 4, 33, 3, 2, 1, 1, 1, 1, false}, {3, 65, 3, 3, 2, 1, 1, 0, 1, 1, 5, true},
      {2, 8, 9, 1, 6, 3, 1, 2, 2, 2, 4, true},    {1, 12, 6, 6, 8, 3, 3, 1, 1, 4, 6, true},
      {2, 20, 8, 7, 3, 5, 1, 2, 1, 1, 1, true},   {1, 6, 4, 5, 6, 3, 1, 1, 1, 6, 2, false},
      {5, 34, 5, 5, 20, 3, 1, 1, 1, 2, 1, true},  {1, 82, 4, 3, 3, 7, 2, 3, 1, 1, 1, true},
  };
  unsigned seed = 1;
  for (const Case& s : cases) {
    const Problem p = make_problem(s, seed++);
    std::vector<double> output;
    Tensors<double> gradients;
    reference(p, output, gradients);
    for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
      if (!isa_available(isa)) continue;
      setenv("CENTERMASK_ISA", isa_name(isa), 1);
      std::vector<float> first;
      for (int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        const std::string what =
            "case " + std::to_string(seed - 1) + " " + isa_name(isa) + " threads " + std::to_string(threads);
        const std::vector<float> result = run<float>(p, output, gradients, pool.parallel_for(), what + " float");
        if (threads == 1) first = result;
        CHECK(result == first);
        if (threads < 3) run<double>(p, output, gradients, pool.parallel_for(), what + " double");
      }
    }
    unsetenv("CENTERMASK_ISA");
  }
}

void test_errors() {
  const Problem p = make_problem({2, 4, 5, 6, 3, 3, 1, 1, 1, 1, 1, true}, 1);
  Tensors<double> t = p.t;
  const TensorView x = view(t.x, {2, 4, 5, 6}), weight = view(t.weight, {3, 4, 3, 3});
  const TensorView offset = view(t.offset, {2, 18, 5, 6}), mask = view(t.mask, {2, 9, 5, 6});
  const DeformConv2dShape shape = deform_conv2d_shape(x, weight, offset, mask, {}, p.params);
  const auto value = ErrorKind::kValue, type = ErrorKind::kType;
  CHECK_FAILS(deform_conv2d_shape(x, weight, mask, mask, {}, p.params), value,
              "deform_conv2d: offset must be [N=2, 2*groups*kh*kw=18, 5, 6], got [2, 9, 5, 6]");
  CHECK_FAILS(deform_conv2d_shape(x, weight, offset, offset, {}, p.params), value,
              "deform_conv2d: mask must be [N=2, groups*kh*kw=9, 5, 6], got [2, 18, 5, 6]");
  CHECK_FAILS(deform_conv2d_shape(x, view(t.weight, {4, 3, 3, 3}), offset, mask, {}, p.params), value,
              "weight must be [4, C/groups=4, 3, 3]");
  TensorView wrong = offset;
  wrong.dtype = DType::kFloat16;
  CHECK_FAILS(deform_conv2d_shape(x, weight, wrong, {}, {}, p.params), type, "offset must be float64 or float32");
  wrong = mask;
  wrong.dtype = DType::kFloat32;
  CHECK_FAILS(deform_conv2d_shape(x, weight, offset, wrong, {}, p.params), type, "mask must be float64 as offset is");
  wrong = offset;
  wrong.device.type = DeviceType::kCuda;
  CHECK_FAILS(deform_conv2d_shape(x, weight, wrong, {}, {}, p.params), value,
              "offset must be on the device of x (cpu), got cuda:0");
  DeformConv2dParams params = p.params;
  params.stride[1] = 0;
  CHECK_FAILS(deform_conv2d_shape(x, weight, offset, {}, {}, params), value,
              "stride must be >= 1 and <= 2^24, got (1, 0)");
  params = p.params;
  params.padding[0] = std::int64_t{1} << 40;
  CHECK_FAILS(deform_conv2d_shape(x, weight, offset, {}, {}, params), value,
              "padding must be >= 0 and <= 2^24, got (1099511627776, 1)");
  const std::int64_t high = std::int64_t{1} << 50;
  CHECK_FAILS(deform_conv2d_shape(x, make_view(nullptr, x.dtype, {3, 4, high, 1}), offset, {}, {}, p.params), value,
              "the kernel of weight [3, 4, 1125899906842624, 1] must be at most 2^24 high and wide");
  params = p.params;
  params.groups = 3;
  CHECK_FAILS(deform_conv2d_shape(x, weight, offset, {}, {}, params), value, "groups=3 must divide");
  params = p.params;
  params.padding[0] = 0, params.dilation[0] = 9;
  CHECK_FAILS(deform_conv2d_shape(x, weight, offset, {}, {}, params), value, "the output would be empty");

  std::vector<double> output(2 * 3 * 5 * 6);
  std::vector<char> memory(deform_conv2d_workspace_cpu(shape, 1, false));
  CHECK_FAILS(deform_conv2d_cpu(x, weight, nullptr, offset, mask, {}, p.params, {memory.data(), memory.size() - 1},
                                view(output, {2, 3, 5, 6})),
              value, "workspace must have");
  CHECK_FAILS(deform_conv2d_cpu(x, weight, nullptr, offset, mask, {}, p.params, {memory.data(), memory.size()},
                                view(output, {2, 3, 6, 5})),
              value, "output must be row-major float64 [2, 3, 5, 6]");

  std::vector<char> packed(deform_conv2d_packed_bytes_cpu(weight, p.params));
  deform_conv2d_pack_cpu(weight, p.params, packed.data());
  setenv("CENTERMASK_ISA", isa_used() == Isa::kBaseline ? "none" : "baseline", 1);
  CHECK_FAILS(deform_conv2d_cpu(x, weight, packed.data(), offset, mask, {}, p.params, {memory.data(), memory.size()},
                                view(output, {2, 3, 5, 6})),
              value, isa_available(Isa::kAvx2) ? "packed weight was made for another" : "CENTERMASK_ISA must be");
  setenv("CENTERMASK_ISA", "sse9", 1);
  CHECK_FAILS(isa_used(), value, "CENTERMASK_ISA must be baseline, avx2 or avx512, got sse9");
  unsetenv("CENTERMASK_ISA");
}

// Beyond one channels-last copy of x, at most 4 MB for each thread, whatever the shape.
void test_workspace() {
  const Case cases[] = {
      {1, 64, 128, 128, 64, 3, 1, 1, 1, 1, 1, true},    {1, 2048, 16, 16, 8192, 3, 1, 1, 1, 1, 1, true},
      {9, 4096, 8, 8, 70000, 1, 1, 0, 1, 1, 1, true},   {2, 512, 64, 64, 512, 11, 1, 5, 1, 1, 8, true},
      {1, 1, 512, 512, 1, 31, 1, 15, 1, 1, 1, false},   {64, 96, 40, 40, 64, 3, 1, 1, 1, 2, 96, true},
      {1, 640, 300, 300, 640, 5, 2, 2, 1, 640, 1, true}};
  for (const Case& s : cases) {
    for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
      for (int threads : {1, 2, 8}) {
        const std::int64_t out = (s.h + 2 * s.padding - s.kernel) / s.stride + 1, taps = s.kernel * s.kernel;
        DeformConv2dParams params;
        for (int i = 0; i < 2; ++i) params.stride[i] = s.stride, params.padding[i] = s.padding;
        params.groups = s.groups;
        const DeformConv2dShape shape = deform_conv2d_shape(
            make_view(nullptr, dtype, {s.n, s.c, s.h, s.w}),
            make_view(nullptr, dtype, {s.out / s.groups * s.groups, s.c / s.groups, s.kernel, s.kernel}),
            make_view(nullptr, dtype, {s.n, 2 * s.offset_groups * taps, out, out}), {}, {}, params);
        const auto bytes = static_cast<std::int64_t>(deform_conv2d_workspace_cpu(shape, threads, true));
        const std::int64_t copy = s.n * (s.h * s.w + 1) * ((s.c + 15) / 16 * 16) * dtype_size(dtype);
        CHECK(bytes <= copy + threads * (std::int64_t{4} << 20));
      }
    }
  }
}

}  // namespace

int main() {
  test_against_loops();
  test_workspace();
  test_errors();
  return check_result();
}
