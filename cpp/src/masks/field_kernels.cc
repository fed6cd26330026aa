// The values of both mask heads on a rectangle of cells. Compiled once for each instruction set: everything but the
// table at the end has internal linkage, and nothing of the standard library's templates is used.
#include "masks/kernels.h"

namespace centermask::masks {

namespace {

#if defined(CENTERMASK_ISA_avx512)
constexpr int kVectorBytes = 64;
#elif defined(CENTERMASK_ISA_avx2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;
constexpr int kBlock = 64;  // cells that are evaluated together

typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t Integers __attribute__((vector_size(kVectorBytes)));

inline Vector splat(float value) { return value - Vector{}; }

// NaN stays NaN, so that a broken parameter cannot pass for a mask.
inline Vector relu(Vector x) { return x < 0.0f ? Vector{} : x; }

// Where the cells [first, first + kBlock) of the rectangle lie: calls copy(row, column, count, place in the block) for
// every piece of a row.
template <class Copy>
inline void for_pieces(const FieldArguments& a, std::int64_t first, std::int64_t count, Copy copy) {
  std::int64_t row = first / a.columns, column = first % a.columns;
  for (std::int64_t place = 0; place < count; ++row, column = 0) {
    const std::int64_t left = count - place;
    const std::int64_t piece = a.columns - column < left ? a.columns - column : left;
    copy(row, column, piece, place);
    place += piece;
  }
}

inline void copy_features(const FieldArguments& a, int channel, std::int64_t row, std::int64_t column,
                          std::int64_t count, float* to) {
  const float* from = a.features + channel * a.channel_stride + row * a.row_stride + column * a.column_stride;
  if (a.column_stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * a.column_stride];
  }
}

// One layer: out[o] = bias[o] + sum over i of weight[o, i] * in[i], for the cells of one vector.
template <int kIn>
inline __attribute__((always_inline)) void layer(const float* weight, const float* bias, const Vector* in,
                                                 Vector* out) {
#pragma GCC unroll 8
  for (int o = 0; o < kHidden; ++o) out[o] = splat(bias[o]);
#pragma GCC unroll 10
  for (int i = 0; i < kIn; ++i) {
#pragma GCC unroll 8
    for (int o = 0; o < kHidden; ++o) out[o] += in[i] * weight[o * kIn + i];
  }
#pragma GCC unroll 8
  for (int o = 0; o < kHidden; ++o) out[o] = relu(out[o]);
}

void dynamic_field(const FieldArguments& a) {
  const float* weight0 = a.params;
  const float* weight1 = weight0 + kHidden * kInputs;
  const float* weight2 = weight1 + kHidden * kHidden;
  const float* bias0 = weight2 + kHidden;
  const float* bias1 = bias0 + kHidden;
  const float bias2 = bias1[kHidden];
  union Inputs {
    float values[kInputs][kBlock];
    Vector vectors[kInputs][kBlock / kLanes];
  } inputs = {};
  union {
    float values[kBlock];
    Vector vectors[kBlock / kLanes];
  } result;

  const std::int64_t cells = a.rows * a.columns;
  for (std::int64_t first = 0; first < cells; first += kBlock) {
    const std::int64_t count = cells - first < kBlock ? cells - first : kBlock;
    for_pieces(a, first, count, [&](std::int64_t row, std::int64_t column, std::int64_t piece, std::int64_t place) {
      const float rel_y = a.row_positions[row].value;
      for (std::int64_t i = 0; i < piece; ++i) {
        inputs.values[0][place + i] = a.column_positions[column + i].value;
        inputs.values[1][place + i] = rel_y;
      }
      for (int channel = 0; channel < kMaskFeatures; ++channel) {
        copy_features(a, channel, row, column, piece, &inputs.values[channel + 2][place]);
      }
    });
    for (int v = 0; v * kLanes < count; ++v) {
      Vector in[kInputs], hidden0[kHidden], hidden1[kHidden];
#pragma GCC unroll 10
      for (int i = 0; i < kInputs; ++i) in[i] = inputs.vectors[i][v];
      layer<kInputs>(weight0, bias0, in, hidden0);
      layer<kHidden>(weight1, bias1, hidden0, hidden1);
      Vector logit = splat(bias2);
#pragma GCC unroll 8
      for (int i = 0; i < kHidden; ++i) logit += hidden1[i] * weight2[i];
      result.vectors[v] = logit;
    }
    for (std::int64_t i = 0; i < count; ++i) a.field[first + i] = result.values[i];
  }
}

// e^-x to 2 ulp for |x| <= 87, beyond which it stays at e^+-87; NaN stays NaN. 2^n * e^r with n whole, |r| <= ln 2 / 2.
inline Vector exp_minus(Vector x) {
  Vector y = -x;
  y = y < -87.0f ? splat(-87.0f) : y;
  y = y > 87.0f ? splat(87.0f) : y;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded number in the lowest bits
  const Vector shifted = y * 1.44269504f + kRounder;
  const Vector n = shifted - kRounder;
  // ln 2 in two parts: n times the first is exact.
  const Vector r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector sum = splat(1.0f / 5040);
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  // 2^n through the exponent's bits; the bits of the rounder vanish in the shift.
  const Integers scale = (reinterpret_cast<Integers>(shifted) << 23) + (127 << 23);
  return sum * reinterpret_cast<Vector>(scale);
}

void shape_field(const FieldArguments& a) {
  union Block {
    float values[kBlock];
    Vector vectors[kBlock / kLanes];
  } shape = {}, saliency = {};
  float between[kShapeSize];  // the shape's rows, interpolated at the current row of cells
  std::int64_t row_of_between = -1;

  const std::int64_t cells = a.rows * a.columns;
  for (std::int64_t first = 0; first < cells; first += kBlock) {
    const std::int64_t count = cells - first < kBlock ? cells - first : kBlock;
    for_pieces(a, first, count, [&](std::int64_t row, std::int64_t column, std::int64_t piece, std::int64_t place) {
      if (row != row_of_between) {
        const CellPosition y = a.row_positions[row];
        const float* upper = a.params + y.index * kShapeSize;
        const float* lower = y.index + 1 < kShapeSize ? upper + kShapeSize : upper;
        for (int i = 0; i < kShapeSize; ++i) between[i] = upper[i] * (1.0f - y.value) + lower[i] * y.value;
        row_of_between = row;
      }
      for (std::int64_t i = 0; i < piece; ++i) {
        const CellPosition x = a.column_positions[column + i];
        const float left = between[x.index];
        const float right = between[x.index + 1 < kShapeSize ? x.index + 1 : x.index];
        shape.values[place + i] = left * (1.0f - x.value) + right * x.value;
      }
      copy_features(a, 0, row, column, piece, &saliency.values[place]);
    });
    for (int v = 0; v * kLanes < count; ++v) {
      const Vector both = (1.0f + exp_minus(shape.vectors[v])) * (1.0f + exp_minus(saliency.vectors[v]));
      shape.vectors[v] = 1.0f / both;
    }
    for (std::int64_t i = 0; i < count; ++i) a.field[first + i] = shape.values[i];
  }
}

}  // namespace

#define CENTERMASK_JOIN_(a, b) a##b
#define CENTERMASK_JOIN(a, b) CENTERMASK_JOIN_(a, b)
extern const FieldKernels CENTERMASK_JOIN(field_kernels_, CENTERMASK_ISA);
const FieldKernels CENTERMASK_JOIN(field_kernels_, CENTERMASK_ISA) = {dynamic_field, shape_field};

}  // namespace centermask::masks
