// Backward: for a block of input channels, grad_columns = weight^T * grad_output by tiles; one pass over each sample
// that gives the gradients of its place, scatters to grad_x and replaces the column's gradient by the column itself;
// then grad_weight += columns^T * grad_output.
#include <cstdint>

#include "deform_conv2d/backward_layout.h"
#include "deform_conv2d/kernels.h"
#include "deform_conv2d/sampling.h"
#include "simd/transpose.h"
#include "simd/vector.h"

#define CENTERMASK_JOIN2(a, b) a##b
#define CENTERMASK_JOIN(a, b) CENTERMASK_JOIN2(a, b)

namespace centermask::deform {
namespace {

struct Scratch {
  std::int64_t panel, corners, places, dots, total;
};

template <class T>
Scratch scratch_of(const BackwardPlan& plan) {
  const std::int64_t rows = round_up(plan.tile_rows, 16);
  Scratch scratch;
  scratch.panel = 0;
  scratch.corners = round_up(plan.tile_rows * plan.panel_stride, 16);
  scratch.places = scratch.corners + rows / kCornerPositions * kCornerElements<T>;
  scratch.dots = scratch.places + 3 * rows;
  scratch.total = scratch.dots + 4 * rows;
  return scratch;
}

template <class T>
std::int64_t scratch_elements(const BackwardPlan& plan) {
  return scratch_of<T>(plan).total;
}

// One tap of the tile. `panel` holds the gradients of the tap's columns; afterwards, with kColumn, the columns.
// dots[k][p] = (column gradient) . (corner k) over the channels.
template <class T, bool kScatter, bool kColumn, bool kDots>
void resample(const BackwardPlan& plan, const CornerBlock<T>* corners, const T* pixels, T* grad_pixels,
              std::int64_t first, std::int64_t positions, T* panel, T* const (&dots)[4]) {
  const std::int64_t out_pixels = plan.shape.out_height * plan.shape.out_width;
  const std::int64_t width = plan.width;
  constexpr int kN = kLanes<T>;
  Vector<T> partial[4][kN] = {};  // the dot products of the last kN positions, lane by lane
  std::int64_t image = first / out_pixels * plan.image_stride;
  std::int64_t next_image = out_pixels - first % out_pixels;
  for (std::int64_t p = 0; p < positions; ++p) {
    if (p == next_image) {
      image += plan.image_stride;
      next_image += out_pixels;
    }
    const CornerBlock<T>& four = corners[p / kCornerPositions];
    const std::int64_t lane = p % kCornerPositions;
    std::int64_t at[4];
    for (int k = 0; k < 4; ++k) at[k] = image + four.index[k][lane] * width;
    const Vector<T> w0 = splat(four.weight[0][lane]), w1 = splat(four.weight[1][lane]);
    const Vector<T> w2 = splat(four.weight[2][lane]), w3 = splat(four.weight[3][lane]);
    Vector<T> dot0{}, dot1{}, dot2{}, dot3{};
    T* row = panel + p * plan.panel_stride;
    for (std::int64_t c = 0; c < width; c += kLanes<T>) {
      const Vector<T> grad = load(row + c);
      if (kColumn || kDots) {
        const Vector<T> v0 = load(pixels + at[0] + c), v1 = load(pixels + at[1] + c);
        const Vector<T> v2 = load(pixels + at[2] + c), v3 = load(pixels + at[3] + c);
        if (kDots) {
          dot0 += grad * v0;
          dot1 += grad * v1;
          dot2 += grad * v2;
          dot3 += grad * v3;
        }
        if (kColumn) store(row + c, w0 * v0 + w1 * v1 + (w2 * v2 + w3 * v3));
      }
      if (kScatter) {
        // One after the other: corners outside the image all share the zero pixel.
        store(grad_pixels + at[0] + c, load(grad_pixels + at[0] + c) + w0 * grad);
        store(grad_pixels + at[1] + c, load(grad_pixels + at[1] + c) + w1 * grad);
        store(grad_pixels + at[2] + c, load(grad_pixels + at[2] + c) + w2 * grad);
        store(grad_pixels + at[3] + c, load(grad_pixels + at[3] + c) + w3 * grad);
      }
    }
    if (kDots) {
      const std::int64_t slot = p % kN;
      partial[0][slot] = dot0;
      partial[1][slot] = dot1;
      partial[2][slot] = dot2;
      partial[3][slot] = dot3;
      if (slot == kN - 1 || p == positions - 1) {
        for (int k = 0; k < 4; ++k) {
          Vector<T> each[kN];
          for (int i = 0; i < kN; ++i) each[i] = partial[k][i];
          store(dots[k] + p - slot, sum_each<T>(each));
        }
      }
    }
  }
}

template <class T>
void resample_any(const BackwardPlan& plan, const CornerBlock<T>* corners, const T* pixels, T* grad_pixels,
                  std::int64_t first, std::int64_t positions, T* panel, T* const (&dots)[4]) {
  using Function = void (*)(const BackwardPlan&, const CornerBlock<T>*, const T*, T*, std::int64_t, std::int64_t, T*,
                            T* const(&)[4]);
  static constexpr Function kFunctions[8] = {resample<T, false, false, false>, resample<T, false, false, true>,
                                             resample<T, false, true, false>,  resample<T, false, true, true>,
                                             resample<T, true, false, false>,  resample<T, true, false, true>,
                                             resample<T, true, true, false>,   resample<T, true, true, true>};
  const int which = 4 * int{plan.need_x} + 2 * int{plan.need_weight} + int{plan.need_places};
  kFunctions[which](plan, corners, pixels, grad_pixels, first, positions, panel, dots);
}

// From the four dot products to the derivatives by dy, dx and mask.
template <class T>
void place_gradients(const Places<T>& places, T* const (&dots)[4], std::int64_t positions, T* grad_y, T* grad_x,
                     T* grad_mask) {
  for (std::int64_t p = 0; p < positions; ++p) {
    const T below = places.below[p], right = places.right[p], mask = places.mask[p];
    const T d0 = dots[0][p], d1 = dots[1][p], d2 = dots[2][p], d3 = dots[3][p];
    grad_y[p] = mask * ((1 - right) * (d2 - d0) + right * (d3 - d1));
    grad_x[p] = mask * ((1 - below) * (d1 - d0) + below * (d3 - d2));
    grad_mask[p] = (1 - below) * ((1 - right) * d0 + right * d1) + below * ((1 - right) * d2 + right * d3);
  }
}

template <class T>
void task(const BackwardArguments& a, std::int64_t block, std::int64_t chunk, void* memory) {
  const BackwardPlan& plan = a.plan;
  const DeformConv2dShape& s = plan.shape;
  const Scratch scratch = scratch_of<T>(plan);
  const std::int64_t rows_capacity = round_up(plan.tile_rows, 16);
  T* panel = static_cast<T*>(memory) + scratch.panel;
  CornerBlock<T>* corners = reinterpret_cast<CornerBlock<T>*>(static_cast<T*>(memory) + scratch.corners);
  T* places_memory = static_cast<T*>(memory) + scratch.places;
  const Places<T> places = {places_memory, places_memory + rows_capacity, places_memory + 2 * rows_capacity};
  T* dots_memory = static_cast<T*>(memory) + scratch.dots;
  T* const dots[4] = {dots_memory, dots_memory + rows_capacity, dots_memory + 2 * rows_capacity,
                      dots_memory + 3 * rows_capacity};

  const std::int64_t out_pixels = s.out_height * s.out_width, all_positions = s.batch * out_pixels;
  const std::int64_t taps = s.kernel_h * s.kernel_w, outs = group_out(plan);
  const std::int64_t image = chunk * plan.chunk_images;
  const std::int64_t image_end = image + plan.chunk_images < s.batch ? image + plan.chunk_images : s.batch;
  const T* pixels = static_cast<const T*>(a.pixels) + block_image(plan, block, 0);
  T* grad_pixels = static_cast<T*>(a.grad_pixels) + block_image(plan, block, 0);
  if (plan.need_x) {
    for (std::int64_t i = image * plan.image_stride; i < image_end * plan.image_stride; ++i) grad_pixels[i] = 0;
  }
  const std::int64_t block_columns = plan.columns * kColumns<T>;
  const T* grad_rows = static_cast<const T*>(a.grad_rows) + a.blocks[block].group * plan.grad_rows * plan.grad_stride;
  for (std::int64_t first = image * out_pixels; first < image_end * out_pixels; first += plan.tile_rows) {
    const std::int64_t left = image_end * out_pixels - first;
    const std::int64_t positions = left < plan.tile_rows ? left : plan.tile_rows;
    const T* grads = grad_rows + first * plan.grad_stride;
    for (std::int64_t g = 0; g < tap_groups(plan); ++g) {
      const std::int64_t first_tap = g * plan.taps_at_once;
      const std::int64_t tap_end = first_tap + plan.taps_at_once < taps ? first_tap + plan.taps_at_once : taps;
      const std::int64_t columns = (tap_end - first_tap) * plan.width;
      if (plan.need_x || plan.need_places) {
        const T* packed = packed_block<T>(plan, a.packed, block, g);
        for (std::int64_t k = 0; k < columns; k += kColumns<T>) {
          for (std::int64_t row = 0; row < positions; row += kRows) {
            multiply_block<T, false>(grads + row * plan.grad_stride, plan.grad_stride, packed + k * outs, kColumns<T>,
                                     outs, panel + row * plan.panel_stride + k, plan.panel_stride, false);
          }
        }
      }
      for (std::int64_t tap = first_tap; tap < tap_end; ++tap) {
        find_corners<T, true>(s, a.offset, a.mask, a.blocks[block].offset_group, tap, first, positions, corners,
                              places);
        resample_any(plan, corners, pixels, grad_pixels, first, positions, panel + (tap - first_tap) * plan.width,
                     dots);
        if (plan.need_places) {
          T* to = static_cast<T*>(a.places) + (block * taps + tap) * 3 * all_positions + first;
          place_gradients(places, dots, positions, to, to + all_positions, to + 2 * all_positions);
        }
      }
      if (plan.need_weight) {
        T* grad_packed = grad_packed_of<T>(a, chunk, block, g);
        for (std::int64_t out_block = 0; out_block < plan.out_blocks; ++out_block) {
          for (std::int64_t k = 0; k < columns; k += kRows) {
            multiply_block<T, true>(panel + k, plan.panel_stride, grads + out_block * kColumns<T>, plan.grad_stride,
                                    positions, grad_packed + out_block * block_columns + k * kColumns<T>, kColumns<T>,
                                    first != image * out_pixels);
          }
        }
      }
    }
  }
}

template <class T>
constexpr BackwardKernels kernels() {
  return {{kLanes<T>, kRows, kColumns<T>},
          copy_pixels<T>,
          copy_grad_rows<T>,
          pack_weight<T>,
          scratch_elements<T>,
          task<T>,
          finish_x<T>,
          finish_weight<T>,
          finish_places<T>,
          finish_bias<T>};
}

}  // namespace

extern const BackwardKernels CENTERMASK_JOIN(backward_kernels_, CENTERMASK_ISA)[2];
const BackwardKernels CENTERMASK_JOIN(backward_kernels_, CENTERMASK_ISA)[2] = {kernels<float>(), kernels<double>()};

}  // namespace centermask::deform
