// What the driver (assemble_cpu.cc: compiled once) and the kernels (field_kernels.cc: compiled for each instruction
// set) say to each other.
#pragma once

#include <cstdint>

namespace centermask::masks {

inline constexpr int kMaskFeatures = 8;
inline constexpr int kInputs = kMaskFeatures + 2;
inline constexpr int kHidden = 8;
inline constexpr int kDynamicParams = kHidden * kInputs + kHidden * kHidden + kHidden + kHidden + kHidden + 1;
inline constexpr int kShapeSize = 32;
inline constexpr int kShapeParams = kShapeSize * kShapeSize;

// Where a row or column of cells lies: kDynamic has its relative coordinate in `value`; kShape its place between the
// shape's rows or columns `index` and `index` + 1 (at most the last), `value` in [0, 1).
struct CellPosition {
  float value;
  std::int32_t index;
};

struct FieldArguments {
  const float* params;    // kDynamicParams or kShapeParams, adjacent
  const float* features;  // the first channel used, at the first cell
  std::int64_t channel_stride, row_stride, column_stride;
  std::int64_t rows, columns;
  const CellPosition* row_positions;
  const CellPosition* column_positions;
  float* field;  // [rows, columns]
};

struct FieldKernels {
  void (*dynamic)(const FieldArguments& arguments);
  void (*shape)(const FieldArguments& arguments);
};

extern const FieldKernels field_kernels_baseline;
extern const FieldKernels field_kernels_avx2;
extern const FieldKernels field_kernels_avx512;

}  // namespace centermask::masks
