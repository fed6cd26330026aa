// Binary masks as COCO run lengths.
//
// A mask of `height` x `width` pixels is read column by column, from the top left; its runs are the lengths of the
// alternating stretches of 0 and 1 pixels, the first of them zeros (and 0 long where the first pixel is set). They add
// up to height * width, which every function here checks before it trusts them: no input makes one read or write out
// of bounds. Results are canonical: no run but the first is empty, so equal masks have equal runs.
//
// Runs are contiguous uint32 views [R]. Several masks are one such view and int64 `offsets` [N+1]: mask i has the runs
// offsets[i] .. offsets[i+1]. Functions whose result has a length that the caller cannot know return the length needed;
// where that is more than the view given holds, the view's contents are unspecified, and the caller calls again
// with a larger one. Scratch memory is taken from the heap, in proportion to the runs (and for outlines, to the pixel
// columns that they cover).
#pragma once

#include <cstdint>

#include "centermask/parallel.h"
#include "centermask/tensor_view.h"

namespace centermask {

// The most pixels that 32-bit runs can count.
inline constexpr std::int64_t kMaxRlePixels = 4294967295;

// Throws Error(kValue) unless the runs add up to height * width.
void rle_check(const TensorView& runs, std::int64_t height, std::int64_t width);

// bitmap: uint8 [H, W], any strides; every value but 0 is inside. Returns the number of runs (at most H * W + 1).
std::int64_t rle_encode(const TensorView& bitmap, const TensorView& runs);

// bitmap: uint8 [H, W], any strides; written with 0 and 1.
void rle_decode(const TensorView& runs, const TensorView& bitmap);

// The number of pixels inside.
std::int64_t rle_area(const TensorView& runs);

// box: float64 [4], the x, y, width and height of the smallest box around the pixels inside; zeros for an empty mask.
void rle_bbox(const TensorView& runs, std::int64_t height, std::int64_t width, const TensorView& box);

struct RleBatch {
  TensorView runs;     // uint32 [R]
  TensorView offsets;  // int64 [N+1]
};

// iou: float64 [D, G], intersection over union of every detection with every true mask; where is_crowd (uint8 [G]) is
// set, intersection over the detection's own area, since a crowd region may hold many objects. 0 where both are empty.
void rle_iou(const RleBatch& detections, const RleBatch& ground_truth, const TensorView& is_crowd, std::int64_t height,
             std::int64_t width, const TensorView& iou, const ParallelFor& parallel = {});

// The union of the masks, or their intersection. At least one mask; all of one size. Returns the number of runs.
std::int64_t rle_merge(const RleBatch& masks, bool intersect, const TensorView& merged);

enum class PolygonFill : std::uint8_t {
  kUnion,    // a pixel inside any ring is inside: the meaning of several polygons in a COCO annotation
  kEvenOdd,  // a pixel inside an odd number of rings is inside: holes are rings of their own
};

// points: float64 [P, 2] x, y in pixels (the first pixel's centre is at 0.5, 0.5); ring i has the points
// ring_offsets[i] .. ring_offsets[i+1] (int64 [R+1]) and is closed by itself. Coordinates are finite and at most 2^24
// in size; parts outside the image are cut off. The same pixels as pycocotools: a ring's vertices are rounded to
// fifths of a pixel, its edges walked in such steps, and a pixel column changes where an edge crosses its centre line.
// Returns the number of runs.
std::int64_t rle_from_polygons(const TensorView& points, const TensorView& ring_offsets, std::int64_t height,
                               std::int64_t width, PolygonFill fill, const TensorView& runs);

struct RingSizes {
  std::int64_t points = 0;
  std::int64_t rings = 0;
};

// The outlines of the mask along the edges of its pixels. points: float64 [P, 2], corners only; ring_offsets: int64
// [R+1]. Pixels that touch at a corner only belong to different rings. With y downwards, outer rings run clockwise as
// seen (their shoelace sum is positive), holes counter-clockwise, so the signed areas add up to rle_area; and
// rle_from_polygons with kEvenOdd gives the same mask again. Both counts returned must fit (rings + 1 offsets).
RingSizes rle_to_polygons(const TensorView& runs, std::int64_t height, std::int64_t width, const TensorView& points,
                          const TensorView& ring_offsets);

// The text form of COCO's "counts": each run (from the fourth on, its difference from the run two before) in groups of
// five bits, the lowest first, sign-extended, each group plus 32 where more follow, plus 48. text: uint8 [n].
std::int64_t rle_to_string(const TensorView& runs, const TensorView& text);

// Throws Error(kValue) on characters outside '0'..'o', an unfinished group, a negative or too large run, or a sum that
// is not height * width.
std::int64_t rle_from_string(const TensorView& text, std::int64_t height, std::int64_t width, const TensorView& runs);

}  // namespace centermask
