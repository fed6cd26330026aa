// A block of threads and its pixel columns of one instance: thread t has the column x + t. The block evaluates the
// cells that these columns touch, some rows of cells at a time, into shared memory, from where each thread walks down
// its column from one row of cells to the next. Between two rows the field is linear down the column, so it crosses the
// threshold there at most once, at a place that one division gives (see crossings.cc).
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "masks/field.cuh"

namespace centermask::masks::device {

inline constexpr int kThreads = 128;
inline constexpr int kTileColumns = 2 * kThreads;  // of cells: two for each pixel column are enough
inline constexpr int kTileValues = 2560;
inline constexpr int kTileRows = 128;
static_assert(kTileValues / kTileColumns >= 2, "a tile must have two rows of cells");

// The pixels that an instance's mask may cover; empty where x_begin == x_end.
struct Window {
  std::int64_t x_begin, x_end, y_begin, y_end;
  __device__ bool empty() const { return x_begin >= x_end || y_begin >= y_end; }
};

struct Scratch {
  alignas(16) float params[kDynamicParams + 3];
  float values[kTileValues];    // v - threshold
  double row_begin[kTileRows];  // where the row of cells has its centre, in pixels
  std::int64_t edges[4];        // of the window: x_begin, y_begin, x_end, y_end
  Box box;
  double inverse[2];  // of the size that positions along x and y are measured in
  CellPosition row_positions[kTileRows];
  CellPosition column_positions[kTileColumns];
  std::int32_t column_cells[kTileColumns];
  std::int32_t pixel_cells[kThreads];  // the cell at or left of each pixel column
  std::uint32_t row_pixel[kTileRows];  // the first pixel that is not above the row
};

// The pixel column of one thread.
struct Column {
  std::int64_t x;
  bool valid;
  int left, right;  // columns of the tile
  float right_weight, left_weight;
  double fraction;
};

// a / b to 13 digits, for |b| within the range of float: from a reciprocal in float, and one step of Newton's.
__device__ inline double quotient(double a, double b) {
  // Scaled, since the reciprocal is 0 for numbers beyond 2^126.
  const double reciprocal = 0.0625 * static_cast<double>(__fdividef(1.0f, static_cast<float>(0.0625 * b)));
  const double first = __dmul_rn(a, reciprocal);
  return fma(fma(-first, b, a), reciprocal, first);
}

// What the whole block shares, in registers.
template <MaskHead kHead>
class Columns {
 public:
  // All threads of the block call this, and get the same window. Ends with a barrier.
  __device__ Columns(const Problem& problem, std::int64_t instance, Scratch& scratch)
      : problem_(problem), scratch_(scratch), instance_(instance) {
    const float* row = problem.boxes + instance * problem.boxes_stride[0];
    const std::int64_t step = problem.boxes_stride[1];
    const Box box = {static_cast<double>(row[0]), static_cast<double>(row[step]), static_cast<double>(row[2 * step]),
                     static_cast<double>(row[3 * step])};
    if (threadIdx.x == 0) scratch.box = box;
    channel_ = problem.labels != nullptr ? problem.labels[instance * problem.labels_stride] : 0;
    const bool exists = has_area_on_device(box) && channel_ >= 0 && channel_ < problem.channels;
    if (threadIdx.x < 4) {
      const bool vertical = (threadIdx.x & 1u) != 0, upper = (threadIdx.x & 2u) != 0;
      std::int64_t edge = 0;
      if (exists) {
        const double across = box.x1 - box.x0, down = box.y1 - box.y0;
        const double size =
            kHead == MaskHead::kDynamic ? fmax(fmax(across, down), problem.x.stride) : (vertical ? down : across);
        if (!upper) scratch.inverse[threadIdx.x] = 1 / size;
        edge = box_edge(vertical ? problem.y : problem.x, vertical ? box.y0 : box.x0, vertical ? box.y1 : box.x1,
                        problem.margin, upper);
      }
      scratch.edges[threadIdx.x] = edge;
    }
    __syncthreads();
    window_ = {scratch.edges[0], scratch.edges[2], scratch.edges[1], scratch.edges[3]};
  }

  __device__ const Window& window() const { return window_; }

  // Takes the pixel columns [x, x + kThreads), of which those of [valid_begin, valid_end) are evaluated: at least one,
  // and all in the window. All threads call this; load() must follow.
  __device__ Column begin(std::int64_t x, std::int64_t valid_begin, std::int64_t valid_end) {
    rows_ = cells_of(problem_.y, window_.y_begin, window_.y_end);
    Column column{};
    column.x = x + threadIdx.x;
    column.valid = column.x >= valid_begin && column.x < valid_end;
    std::int32_t cell = 0;
    if (column.valid) {
      const double place = cell_at(problem_.x, column.x);
      cell = static_cast<std::int32_t>(place);
      column.fraction = place - cell;
      column.right_weight = static_cast<float>(column.fraction);
      column.left_weight = static_cast<float>(1.0 - column.fraction);
      scratch_.pixel_cells[threadIdx.x] = cell;
    }
    if (kHead == MaskHead::kDynamic) {
      const std::int64_t params = instance_ * problem_.params_stride[0];
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < kDynamicParams; i += kThreads) {
        scratch_.params[dynamic_place(i)] =
            load(problem_.params, problem_.params_type, params + i * problem_.params_stride[1]);
      }
    }
    __syncthreads();

    const auto last_cell = static_cast<std::int32_t>(problem_.x.cells - 1);
    const auto first = static_cast<int>(valid_begin - x), last = static_cast<int>(valid_end - x) - 1;
    const std::int32_t first_cell = scratch_.pixel_cells[first];
    const std::int32_t end_cell =
        scratch_.pixel_cells[last] + 1 < last_cell ? scratch_.pixel_cells[last] + 1 : last_cell;
    // Where pixels skip cells, the tile has just the two cells of each.
    const int pairs = 2 * (last - first + 1);
    const bool adjacent = end_cell - first_cell < pairs;
    columns_ = adjacent ? end_cell - first_cell + 1 : pairs;
#pragma unroll 1
    for (int k = static_cast<int>(threadIdx.x); k < columns_; k += kThreads) {
      std::int32_t tile_cell = adjacent ? first_cell + k : scratch_.pixel_cells[first + k / 2] + k % 2;
      if (tile_cell > last_cell) tile_cell = last_cell;
      scratch_.column_cells[k] = tile_cell;
      scratch_.column_positions[k] =
          position(problem_.x, tile_cell, scratch_.box.x0, scratch_.box.x1, scratch_.inverse[0]);
    }
    column.left = adjacent ? cell - first_cell : 2 * (static_cast<int>(threadIdx.x) - first);
    column.right = column.left + 1 < columns_ ? column.left + 1 : column.left;
    if (!column.valid) column.left = column.right = 0;
    tile_rows_ = kTileValues / columns_ < kTileRows ? kTileValues / columns_ : kTileRows;
    return column;
  }

  // Evaluates the tile that begins at row `first` of the window's rows of cells. Begins and ends with a barrier.
  // Neighbouring tiles share a row. Tiles are taken as in:
  //   for (first = 0;; first = next()) { load(first); ...; if (last_tile()) break; }
  __device__ void load_tile(std::int64_t first) {
    tile_first_ = first;
    tile_count_ = static_cast<int>(rows_.count - first < tile_rows_ ? rows_.count - first : tile_rows_);
    __syncthreads();  // whoever still reads the tile before
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < tile_count_; i += kThreads) {
      const std::int64_t cell = rows_.first + first + i;
      const double begin = pixel_of_cell(problem_.y, cell);
      scratch_.row_begin[i] = begin;
      scratch_.row_positions[i] = position(problem_.y, cell, scratch_.box.y0, scratch_.box.y1, scratch_.inverse[1]);
      scratch_.row_pixel[i] =
          static_cast<std::uint32_t>(first_at_cell(problem_.y, cell, begin, window_.y_begin, window_.y_end));
    }
    __syncthreads();
    const unsigned values = static_cast<unsigned>(tile_count_ * columns_);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < values; i += kThreads) {
      const unsigned row = i / static_cast<unsigned>(columns_), column = i - row * static_cast<unsigned>(columns_);
      const std::int64_t cell = channel_ * problem_.features_stride[0] +
                                (rows_.first + first + row) * problem_.features_stride[1] +
                                static_cast<std::int64_t>(scratch_.column_cells[column]) * problem_.features_stride[2];
      float value = 0.0f;
      if (kHead == MaskHead::kDynamic) {
        value = dynamic_value(problem_, scratch_.params, cell, scratch_.column_positions[column].value,
                              scratch_.row_positions[row].value);
      } else {
        value = shape_value(problem_, instance_ * problem_.params_stride[0], cell, scratch_.row_positions[row],
                            scratch_.column_positions[column]);
      }
      scratch_.values[i] = less_threshold(problem_, value);
    }
    __syncthreads();
  }

  __device__ std::int64_t next_tile() const { return tile_first_ + tile_count_ - 1; }
  __device__ bool last_tile() const { return tile_first_ + tile_count_ >= rows_.count; }
  __device__ bool one_tile() const { return rows_.count <= tile_rows_; }
  __device__ int tile_rows() const { return tile_count_; }
  __device__ std::uint32_t row_pixel(int row) const { return scratch_.row_pixel[row]; }

  // v - threshold at the row of cells.
  __device__ float value(const Column& column, int row) const {
    const float* values = scratch_.values + row * columns_;
    return fmaf(values[column.right], column.right_weight, __fmul_rn(values[column.left], column.left_weight));
  }

  // The pixels [low, high) between two rows: up to `at` they are on side `from`, and then on side `to`.
  struct Gap {
    bool from, to;
    std::uint32_t at;
  };

  __device__ Gap gap(const Column& column, int row, float upper, float lower, std::uint32_t low,
                     std::uint32_t high) const {
    const bool from = upper >= 0.0f, to = lower >= 0.0f;
    if (upper != upper || lower != lower) return {false, false, high};
    if (from == to) return {from, to, high};
    const double above = exact_value(column, row), below = exact_value(column, row + 1);
    const double y = fma(problem_.y.step, quotient(above, __dadd_rn(above, -below)), scratch_.row_begin[row]);
    // The first pixel at or behind the crossing where the mask begins, the first one behind it where the mask ends.
    std::uint32_t at = low;
    if (y >= static_cast<double>(high)) {
      at = high;
    } else if (y >= static_cast<double>(low)) {
      at = static_cast<std::uint32_t>(y);
      if (!(to && static_cast<double>(at) == y)) ++at;
    }
    return {from, to, at};
  }

  // Walks down the loaded tile and calls emit(y) where the side changes, from `side`, which is left at that of the last
  // pixel.
  template <class Emit>
  __device__ void walk(const Column& column, bool& side, Emit emit) const {
    float upper = value(column, 0);
#pragma unroll 1
    for (int row = 0; row + 1 < tile_count_; ++row) {
      const float lower = value(column, row + 1);
      const bool to = lower >= 0.0f;
      if ((upper >= 0.0f) != to || side != to) {
        const std::uint32_t low = scratch_.row_pixel[row], high = scratch_.row_pixel[row + 1];
        if (low < high) {
          const Gap here = gap(column, row, upper, lower, low, high);
          const bool first = here.at > low ? here.from : here.to;
          if (first != side) emit(low);
          if (here.from != here.to && here.at > low && here.at < high) emit(here.at);
          side = here.at < high ? here.to : here.from;
        }
      }
      upper = lower;
    }
    if (last_tile()) {  // pixels beyond the centre of the last cell
      const std::uint32_t low = scratch_.row_pixel[tile_count_ - 1];
      const bool last = upper >= 0.0f;
      if (low < window_.y_end && last != side) {
        emit(low);
        side = last;
      }
    }
  }

 private:
  __device__ CellPosition position(const Axis& axis, std::int64_t cell, double low, double high, double inverse) const {
    if (kHead == MaskHead::kShape) return shape_position(axis, cell, low, inverse);
    return relative_position(axis, cell, low, high, inverse);
  }

  __device__ double exact_value(const Column& column, int row) const {
    const float* values = scratch_.values + row * columns_;
    return fma(static_cast<double>(values[column.right]), column.fraction,
               __dmul_rn(static_cast<double>(values[column.left]), 1.0 - column.fraction));
  }

  const Problem& problem_;
  Scratch& scratch_;
  std::int64_t instance_, channel_;
  Window window_{};
  CellRange rows_{};
  std::int64_t tile_first_ = 0;
  int columns_ = 0, tile_rows_ = 0, tile_count_ = 0;
};

}  // namespace centermask::masks::device
