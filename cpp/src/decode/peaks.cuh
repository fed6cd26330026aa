// Where the peaks of a heatmap are, found by warps: each lane looks at 4x4 cells, a warp at a group of 32 such patches.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/mma.h"
#include "cuda/runtime.h"

namespace centermask::decode {

constexpr int kSide = 4;    // cells along a side of a lane's patch
constexpr int kLanes = 32;  // patches of a group
constexpr unsigned kFull = 0xffffffffu;

// Orders centres: the larger key is the better centre. The high half is the logit's bits made to compare as integers
// (-0 as +0), the low half the complement of the position class * H * W + y * W + x. So no two keys are equal, and none
// is 0, which stands for "no centre".
using Key = unsigned long long;

__device__ inline Key make_key(float logit, std::uint32_t position) {
  const std::uint32_t bits = __float_as_uint(logit == 0 ? 0.0F : logit);
  const std::uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | (~position & 0xffffffffu);
}

__device__ inline float key_logit(Key key) {
  const auto ordered = static_cast<std::uint32_t>(key >> 32);
  return __uint_as_float((ordered & 0x80000000u) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ inline std::uint32_t key_position(Key key) { return ~static_cast<std::uint32_t>(key); }

enum class Layout {
  kVector,       // four cells of a row are one aligned load
  kStrided,      // anything
  kClassesLast,  // neighbouring lanes look at neighbouring classes, which are neighbours in memory
};

struct HeatmapView {
  const void* data = nullptr;
  std::int64_t image_stride = 0;
  std::int64_t class_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
  std::uint32_t classes = 0;
  std::uint32_t height = 0;
  std::uint32_t width = 0;
  std::uint32_t patch_columns = 0;  // patches along a row
  std::uint32_t patch_rows = 0;
  std::uint32_t patches = 0;  // of one image
  std::uint32_t groups = 0;   // of one image
  float bound = 0;            // cells below it are no centres
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// A lane's 4x4 cells.
struct Patch {
  float value[kSide][kSide];
  unsigned peaks;          // bit row * 4 + column
  std::uint32_t position;  // of the first cell
  std::uint32_t width;

  __device__ Key key(int row, int column) const {
    return make_key(value[row][column],
                    position + static_cast<std::uint32_t>(row) * width + static_cast<std::uint32_t>(column));
  }

  // take(key) for each peak, in the order of the positions.
  template <class Take>
  __device__ void for_each_peak(const Take& take) const {
#pragma unroll
    for (int row = 0; row < kSide; ++row) {
#pragma unroll
      for (int column = 0; column < kSide; ++column) {
        if ((peaks >> (row * kSide + column) & 1u) != 0) take(key(row, column));
      }
    }
  }
};

// One row of a patch with a cell on either side: row[0] and row[5] are the neighbours. Cells that are not there, or not
// in a lane with `inside`, are -inf, which suppresses nothing.
template <class T, Layout layout>
__device__ inline void load_row(const T* cells, std::int64_t step, std::uint32_t x, std::uint32_t width, bool inside,
                                float (&row)[kSide + 2]) {
  const float absent = __uint_as_float(0xff800000u);
  if (layout == Layout::kVector) {
    struct alignas(kSide * sizeof(T)) Four {
      T value[kSide];
    };
    for (int i = 0; i < kSide; ++i) row[i + 1] = absent;
    if (inside) {
      const Four four = *reinterpret_cast<const Four*>(cells);
#pragma unroll
      for (int i = 0; i < kSide; ++i) row[i + 1] = to_float(four.value[i]);
    }
  } else {
    step = cuda::computed_here(step);  // its multiples, that is: kept from row to row they are too many registers
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      row[i + 1] = inside && x + static_cast<std::uint32_t>(i) < width ? to_float(cells[i * step]) : absent;
    }
  }
  // Neighbouring lanes hold neighbouring patches, unless classes come last: exchange_edges() takes it from there.
  const auto lane = static_cast<int>(threadIdx.x % kLanes);
  const bool alone = layout == Layout::kClassesLast;
  row[0] = inside && x > 0 && (alone || lane == 0) ? to_float(cells[-step]) : absent;
  row[kSide + 1] =
      inside && x + kSide < width && (alone || lane == kLanes - 1) ? to_float(cells[kSide * step]) : absent;
}

// All lanes of the warp call it.
template <Layout layout>
__device__ inline void exchange_edges(std::uint32_t x, std::uint32_t width, float (&row)[kSide + 2]) {
  if (layout == Layout::kClassesLast) return;
  const auto lane = static_cast<int>(threadIdx.x % kLanes);
  const float left = __shfl_up_sync(kFull, row[kSide], 1);
  const float right = __shfl_down_sync(kFull, row[1], 1);
  if (x > 0 && lane > 0) row[0] = left;
  if (x + kSide < width && lane < kLanes - 1) row[kSide + 1] = right;
}

// All lanes of the warp call it.
template <class T, Layout layout>
__device__ inline Patch load_patch(const HeatmapView& map, std::int64_t image, std::uint32_t group) {
  const std::uint32_t item = group * kLanes + threadIdx.x % kLanes;
  const bool exists = item < map.patches;
  std::uint32_t rest = exists ? item : 0;
  std::uint32_t c = 0;
  if (layout == Layout::kClassesLast) {
    c = rest % map.classes;
    rest /= map.classes;
  }
  const std::uint32_t x = rest % map.patch_columns * kSide;
  rest /= map.patch_columns;
  const std::uint32_t y = (layout == Layout::kClassesLast ? rest : rest % map.patch_rows) * kSide;
  if (layout != Layout::kClassesLast) c = rest / map.patch_rows;

  const std::int64_t step = layout == Layout::kVector ? 1 : map.column_stride;
  const T* first =
      static_cast<const T*>(map.data) + image * map.image_stride + c * map.class_stride + y * map.row_stride + x * step;
  Patch patch;
  patch.peaks = 0;
  patch.width = map.width;
  patch.position = (c * map.height + y) * map.width + x;
  // All loads first, so that they are under way together.
  float rows[kSide + 2][kSide + 2];
#pragma unroll
  for (int r = 0; r < kSide + 2; ++r) {
    const std::uint32_t below = y + static_cast<std::uint32_t>(r);  // the row's number and 1
    load_row<T, layout>(first + (r - 1) * map.row_stride, step, x, map.width,
                        exists && below >= 1 && below <= map.height, rows[r]);
  }
  // The largest of a row's cells and their left and right neighbours; fmaxf passes over NaN.
  float largest[kSide + 2][kSide];
#pragma unroll
  for (int r = 0; r < kSide + 2; ++r) {
    exchange_edges<layout>(x, map.width, rows[r]);
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      largest[r][i] = fmaxf(fmaxf(rows[r][i], rows[r][i + 1]), rows[r][i + 2]);
      if (r >= 1 && r <= kSide) patch.value[r - 1][i] = rows[r][i + 1];
    }
  }
#pragma unroll
  for (int r = 0; r < kSide; ++r) {
    const bool row_exists = exists && y + static_cast<std::uint32_t>(r) < map.height;
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const bool here = row_exists && x + static_cast<std::uint32_t>(i) < map.width;
      const float value = patch.value[r][i];
      const float around = fmaxf(fmaxf(largest[r][i], largest[r + 1][i]), largest[r + 2][i]);
      if (here && value >= map.bound && value >= around) patch.peaks |= 1u << (r * kSide + i);
    }
  }
  return patch;
}

}  // namespace centermask::decode
