"""A model of the contract that needs no training, to test everything around it: it finds red and green blobs on black.

Class 0 is `red`, class 1 `green`: the heatmap of a class is its colour channel, averaged over 4x4 pixels and blurred,
so its peak is the blob's middle. Each box is a square of 64 input pixels around the peak. The dynamic mask network is
the same for all: it passes mask feature 0 (brightest channel minus one half) through, so the mask is the blob inside
the box.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from centermask.config import DYNAMIC_PARAMS, PreprocessConfig
from centermask.metadata import ModelInfo

TOP_K = 20
BOX_SIDE = 64
BLUR = 21

INFO = ModelInfo(
    name="tiny-conv-dynamic",
    class_names=("red", "green"),
    category_ids=(3, 7),
    preprocess=PreprocessConfig(size=320, policy="fit", color="rgb", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
    mask_head="dynamic",
    box_margin=0.1,
    top_k=TOP_K,
    score_threshold=0.3,
    training_data="none",
    ap=(("blobs val mask_ap", 0.5),),
)

GRAPH = """
<ir_version: 9, opset_import: ["" : 19]>
tiny (float[N,3,H,W] image) => (float[N,20,4] boxes, float[N,20] scores, int64[N,20] labels, int64[N] count,
                                float[N,20,169] mask_params, float[N,8,h,w] mask_features)
{
  cells = AveragePool<kernel_shape=[4,4], strides=[4,4]>(image)
  red_green = Slice(cells, zero, two, one)
  blurred = Conv<pads=[10,10,10,10], group=2>(red_green, kernel)
  above_half = Sub(blurred, half)
  heatmap = Mul(above_half, sharpness)
  peak = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(heatmap)
  is_peak = Equal(heatmap, peak)
  kept = Where(is_peak, heatmap, lowest)
  flat = Flatten<axis=1>(kept)
  logits, place = TopK<axis=1>(flat, top_k)
  shape = Shape(heatmap)
  width = Gather<axis=0>(shape, three)
  height = Gather<axis=0>(shape, two)
  area = Mul(height, width)
  all_labels = Div(place, area)
  index = Mod(place, area)
  row = Div(index, width)
  column = Mod(index, width)
  x = Cast<to=1>(column)
  y = Cast<to=1>(row)
  x_cell = Add(x, half)
  y_cell = Add(y, half)
  x_column = Unsqueeze(x_cell, minus_one)
  y_column = Unsqueeze(y_cell, minus_one)
  xy = Concat<axis=-1>(x_column, y_column)
  center = Mul(xy, four)
  low = Sub(center, half_side)
  high = Add(center, half_side)
  all_boxes = Concat<axis=-1>(low, high)
  all_scores = Sigmoid(logits)
  is_valid = GreaterOrEqual(all_scores, least)
  valid_number = Cast<to=7>(is_valid)
  count = ReduceSum<keepdims=0>(valid_number, one)
  scores = Where(is_valid, all_scores, nothing)
  labels = Where(is_valid, all_labels, minus_one)
  valid_row = Unsqueeze(is_valid, minus_one)
  boxes = Where(valid_row, all_boxes, nothing)
  mask_params = Where(valid_row, parameters, nothing)
  brightest = ReduceMax<keepdims=1>(cells, one)
  feature = Sub(brightest, half)
  mask_features = Concat<axis=1>(feature, feature, feature, feature, feature, feature, feature, feature)
}
"""


def mask_parameters() -> np.ndarray:
    """The dynamic network v = relu(f0) - relu(-f0), which is f0, in the order w0, w1, w2, b0, b1, b2."""
    w0, w1, w2 = np.zeros((8, 10)), np.zeros((8, 8)), np.zeros((1, 8))
    w0[0, 2], w0[1, 2] = 1, -1
    w1[0, 0] = w1[1, 1] = 1
    w2[0, 0], w2[0, 1] = 1, -1
    flat = np.concatenate([w0.ravel(), w1.ravel(), w2.ravel(), np.zeros(17)]).astype(np.float32)
    assert flat.shape == (DYNAMIC_PARAMS,)
    return flat


def build() -> onnx.ModelProto:
    """The model with its metadata."""
    model = onnx.parser.parse_model(GRAPH)
    offsets = np.arange(BLUR) - BLUR // 2
    bell = np.exp(-(offsets**2) / 50.0)
    kernel = np.tile((np.outer(bell, bell) / bell.sum() ** 2)[None, None], (2, 1, 1, 1)).astype(np.float32)
    constants = {
        "kernel": kernel,
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "three": np.array([3], np.int64),
        "minus_one": np.array([-1], np.int64),
        "top_k": np.array([TOP_K], np.int64),
        "half": np.array(0.5, np.float32),
        "four": np.array(4.0, np.float32),
        "sharpness": np.array(8.0, np.float32),
        "half_side": np.array(BOX_SIDE / 2, np.float32),
        "least": np.array(0.05, np.float32),
        "nothing": np.array(0.0, np.float32),
        "lowest": np.array(-np.inf, np.float32),
        "parameters": mask_parameters()[None, None],
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    helper.set_model_props(model, INFO.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    return model


def write(path: Path, **metadata: str | None) -> Path:
    """Writes the model; `metadata` changes or (None) removes entries, without their prefix."""
    model = build()
    entries = INFO.to_metadata()
    for key, value in metadata.items():
        if value is None:
            del entries[f"centermask.{key}"]
        else:
            entries[f"centermask.{key}"] = value
    helper.set_model_props(model, entries)
    onnx.save(model, path)
    return path


def picture(height: int, width: int, blobs: list[tuple[str, float, float, float]]) -> np.ndarray:
    """A BGR picture, black, with filled discs (colour, centre x, centre y, radius) in continuous coordinates."""
    image = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    for color, center_x, center_y, radius in blobs:
        inside = (x - center_x) ** 2 + (y - center_y) ** 2 <= radius**2
        image[inside, {"red": 2, "green": 1}[color]] = 255
    return image


def disc(height: int, width: int, center_x: float, center_y: float, radius: float) -> np.ndarray:
    """The bool mask of a disc."""
    y, x = np.mgrid[:height, :width] + 0.5
    return (x - center_x) ** 2 + (y - center_y) ** 2 <= radius**2
