#include "half.h"

#include <algorithm>
#include <cstring>

namespace centermask::ort {

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  std::uint32_t bits = static_cast<std::uint32_t>(half & 0x7fff) << 13;  // exponent and mantissa in place
  float value;
  if (bits >= 0x7c00u << 13) {  // infinity or NaN
    bits |= 0xffu << 23;
    std::memcpy(&value, &bits, sizeof value);
  } else {
    // Read with float32's bias, a half is 2^112 too small, subnormal ones included.
    std::memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
  }
  std::memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint16_t float_to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);   // NaN
  if (bits >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // rounds to 65536 or beyond
  if (bits < 0x38800000) {
    // Subnormal in half: adding 0.5 leaves multiples of 2^-24 in the mantissa, rounded to even by the addition.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1);  // to nearest, ties to even
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000) >> 13));
}

namespace {

constexpr std::int64_t kChunk = 16384;

template <class Function>
void in_chunks(std::int64_t count, const ParallelFor& parallel_for, Function function) {
  parallel_for((count + kChunk - 1) / kChunk, [&](std::int64_t i) {
    const std::int64_t end = std::min(count, (i + 1) * kChunk);
    for (std::int64_t k = i * kChunk; k < end; ++k) function(k);
  });
}

TensorView as_float(const TensorView& tensor, float* values) {
  TensorView view = tensor;
  view.data = values;
  view.dtype = DType::kFloat32;
  return view;
}

}  // namespace

Widened::Widened(const TensorView& tensor, const ParallelFor& parallel_for) : view_(tensor) {
  if (!tensor.present() || tensor.dtype != DType::kFloat16) return;
  values_.reset(new float[static_cast<std::size_t>(tensor.size())]);
  const auto* from = tensor.ptr<const std::uint16_t>();
  float* to = values_.get();
  in_chunks(tensor.size(), parallel_for, [=](std::int64_t i) { to[i] = half_to_float(from[i]); });
  view_ = as_float(tensor, to);
}

Narrowed::Narrowed(const TensorView& output) : view_(output), output_(output) {
  if (output.dtype != DType::kFloat16) return;
  values_.reset(new float[static_cast<std::size_t>(output.size())]);
  view_ = as_float(output, values_.get());
}

void Narrowed::finish(const ParallelFor& parallel_for) const {
  if (output_.dtype != DType::kFloat16) return;
  const float* from = values_.get();
  auto* to = output_.ptr<std::uint16_t>();
  in_chunks(output_.size(), parallel_for, [=](std::int64_t i) { to[i] = float_to_half(from[i]); });
}

}  // namespace centermask::ort
