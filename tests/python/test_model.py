"""The network: shapes, sparse against dense heads, decoding, mask heads."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from torch.nn import functional as F

from centermask import ops
from centermask.config import ModelConfig
from centermask.nn.backbone import Backbone
from centermask.nn.heads import Head, gather_patches, gather_rows
from centermask.nn.model import (
    CenterMask,
    DenseOutputs,
    decode_size,
    dynamic_mask_logits,
    shape_mask_probability,
)
from centermask.nn.neck import Neck

TINY = "test_efficientnet"  # timm's own backbone for tests

SUM_ORDER = 1e-12
"""Two float64 sums of a few hundred values of size 1, in other orders: some hundred times 2^-53."""


def build(name: str = f"{TINY}-conv-dynamic", classes: int = 3, **changes) -> CenterMask:
    """A model whose every layer matters: statistics of the norms and zero-initialised weights are drawn."""
    torch.manual_seed(1)
    names = tuple("abcdefgh"[:classes])
    model = CenterMask(ModelConfig.from_name(name, class_names=names, category_ids=tuple(range(classes)), **changes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, Head):
            torch.nn.init.normal_(module.out.weight, 0, 0.2)
    return model.eval()


# ---- shapes ----


@pytest.mark.parametrize("kind", ["conv", "dcn"])
def test_resnet50_neck_doubles_from_16_to_128_cells(kind):
    """The seed's plain neck had padding 0: 16 -> 14 -> 28 -> 26 -> 52 -> 50 -> 100."""
    sizes = []
    neck = Neck(kind, [256, 512, 1024, 2048], (256, 128, 64), lateral=False).eval()
    for stage in neck.stages:
        stage.conv.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
        stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        last = neck([torch.zeros(1, c, s, s) for c, s in ((256, 128), (512, 64), (1024, 32), (2048, 16))])
    assert sizes == [(256, 16, 16), (256, 32, 32), (128, 32, 32), (128, 64, 64), (64, 64, 64), (64, 128, 128)]
    assert last.shape == (1, 64, 128, 128)


def test_resnet50_backbone_gives_the_maps_that_this_neck_takes():
    backbone = Backbone("resnet50").eval().to("meta")
    assert backbone.channels == [256, 512, 1024, 2048]
    shapes = [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 512, 512, device="meta"))]
    assert shapes == [(1, 256, 128, 128), (1, 512, 64, 64), (1, 1024, 32, 32), (1, 2048, 16, 16)]


@pytest.mark.parametrize(
    ("name", "params", "features"),
    [("lite0-dcn-dynamic", 169, 8), ("lite0-conv-shape", 1024, 1), ("lite0-conv-none", None, None)],
)
def test_lite0_outputs(name, params, features):
    model = CenterMask(ModelConfig.from_name(name, class_names=("a", "b"), category_ids=(1, 2), top_k=7)).eval()
    assert [tuple(stage.up.weight.shape[:2]) for stage in model.neck.stages] == [(128, 128), (96, 96), (64, 64)]
    with torch.no_grad():
        dense = model(torch.zeros(2, 3, 64, 96))
        deployed = model.deploy(torch.zeros(2, 3, 64, 96))
    assert dense.heatmap.shape == (2, 2, 16, 24)
    assert dense.features.shape == (2, 64, 16, 24)
    assert deployed.boxes.shape == (2, 7, 4)
    assert deployed.scores.shape == deployed.labels.shape == (2, 7)
    assert deployed.count.shape == (2,)
    assert (deployed.labels.dtype, deployed.count.dtype) == (torch.int64, torch.int64)
    if params is None:
        assert dense.mask_features is deployed.mask_params is deployed.mask_features is None
    else:
        assert deployed.mask_params.shape == (2, 7, params)
        assert deployed.mask_features.shape == dense.mask_features.shape == (2, features, 16, 24)


def test_a_model_needs_classes():
    with pytest.raises(ValueError, match="at least one class"):
        CenterMask(ModelConfig.from_name("lite0-conv-none"))


# ---- sparse heads ----


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 4), (3, 1)])
def test_heads_give_the_same_everywhere_and_at_cells(height, width):
    torch.manual_seed(0)
    head = Head(6, 10, 4, bias=0.5, std=1.0).double()
    torch.nn.init.normal_(head.hidden.bias)
    features = torch.randn(2, 6, height, width, dtype=torch.float64)
    index = torch.arange(height * width).expand(2, -1)  # borders included
    dense = head(features).flatten(2).permute(0, 2, 1)
    sparse = head.at(gather_patches(features, index))
    torch.testing.assert_close(sparse, dense, rtol=0, atol=SUM_ORDER)


def test_both_gathers_equal_the_core():
    torch.manual_seed(0)
    features = torch.randn(3, 5, 6, 4)
    index = torch.randint(24, (3, 9))
    expected = ops.gather_patches(features.numpy(), index.numpy())
    np.testing.assert_array_equal(gather_patches(features, index).numpy(), expected)
    picture = torch.arange(3).repeat_interleave(9)
    flat = index.flatten()
    rows = gather_rows(features, picture, flat // 4, flat % 4)
    np.testing.assert_array_equal(rows.numpy(), expected.reshape(27, -1))


def test_gradient_of_gathered_rows_does_not_depend_on_threads():
    """Plain indexing adds overlapping gradients atomically: with threads, in another order in every run."""
    torch.manual_seed(0)
    features = torch.randn(1, 64, 8, 8)
    picture, y, x = torch.zeros(800, dtype=torch.int64), torch.randint(8, (800,)), torch.randint(8, (800,))
    upstream = torch.randn(800, 64 * 9)
    threads = torch.get_num_threads()
    gradients = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            leaf = features.clone().requires_grad_()
            gather_rows(leaf, picture, y, x).backward(upstream)
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*gradients)
    loop = torch.zeros(64, 10, 10, dtype=torch.float64)
    rows = upstream.double().reshape(-1, 64, 3, 3)
    for row, j, i in zip(rows, y.tolist(), x.tolist(), strict=True):
        loop[:, j : j + 3, i : i + 3] += row
    # About 110 terms of size 1 meet in a cell; float32 sums of that many are good to 1e-5.
    torch.testing.assert_close(gradients[0][0].double(), loop[:, 1:9, 1:9], rtol=0, atol=1e-4)


def test_gradient_of_mask_features_does_not_depend_on_threads():
    torch.manual_seed(0)
    picture = torch.zeros(24, dtype=torch.int64)
    labels = torch.randint(8, (24,))
    boxes = torch.tensor([[4.0, 4, 28, 28]]).expand(24, -1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            features = torch.randn(1, 8, 48, 48, requires_grad=True)
            dynamic = dynamic_mask_logits(features, torch.randn(24, 169), boxes, picture)
            shape = shape_mask_probability(features, torch.randn(24, 1024), boxes, picture, labels)
            results.append([torch.autograd.grad(v.sum(), features)[0] for v in (dynamic * dynamic, shape)])
    finally:
        torch.set_num_threads(threads)
    # Of equal matrices the library's product may differ with the threads; the shape head has none.
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    assert torch.equal(results[0][1], results[1][1])


# ---- decoding ----


def dense_numpy(model: CenterMask, dense: DenseOutputs):
    """Every head everywhere, as NumPy: size, offset, parameters."""
    heads = (model.size, model.offset, model.mask_params)
    return [None if h is None else h(dense.features).numpy() for h in heads]


@pytest.mark.parametrize("mask_head", ["dynamic", "none"])
@pytest.mark.parametrize("coding", ["exp", "linear"])
def test_deploy_equals_a_plain_decode_of_the_dense_maps(coding, mask_head):
    model = build(f"{TINY}-conv-{mask_head}", top_k=12, box_coding=coding).double()
    torch.manual_seed(2)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        dense = model(images)
        scores = ops.decode_centers(dense.heatmap.numpy(), 12).scores
        threshold = float(scores[0, 5] + scores[0, 6]) / 2  # cuts the first picture's rows after the sixth
        deployed = model.deploy(images, threshold)
        size, offset, params = dense_numpy(model, dense)
    centers = ops.decode_centers(dense.heatmap.numpy(), 12, threshold)
    assert centers.count[0] == 6
    np.testing.assert_array_equal(deployed.count.numpy(), centers.count)
    np.testing.assert_array_equal(deployed.labels.numpy(), centers.labels)
    np.testing.assert_allclose(deployed.scores.numpy(), centers.scores, rtol=0, atol=1e-15)
    for n in range(2):
        for k in range(12):
            if k >= centers.count[n]:
                assert deployed.labels[n, k] == -1
                assert deployed.boxes[n, k].abs().sum() == deployed.scores[n, k] == 0
                assert params is None or deployed.mask_params[n, k].abs().sum() == 0
                continue
            y, x = divmod(int(centers.index[n, k]), 24)
            w, h = 8 * np.exp(size[n, :, y, x]) if coding == "exp" else np.maximum(size[n, :, y, x], 0)
            cx, cy = x + offset[n, 0, y, x], y + offset[n, 1, y, x]
            box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * 4
            np.testing.assert_allclose(deployed.boxes[n, k].numpy(), box, rtol=1e-12, atol=1e-10)
            if params is not None:
                np.testing.assert_allclose(deployed.mask_params[n, k].numpy(), params[n, :, y, x], rtol=0, atol=1e-11)
    if params is None:
        assert deployed.mask_params is deployed.mask_features is None


def test_more_rows_asked_for_than_the_map_has_cells():
    model = build(f"{TINY}-conv-dynamic", classes=1, top_k=1000)
    with torch.no_grad():
        deployed = model.deploy(torch.randn(1, 3, 32, 32), 0.0)
        expected = ops.decode_centers(model(torch.zeros(1, 3, 32, 32)).heatmap.numpy(), 1000)
        blank = model.deploy(torch.zeros(1, 3, 32, 32), 0.0)
    assert deployed.boxes.shape == (1, 64, 4)
    # Without a threshold all peaks count, and only peaks.
    assert 0 < int(blank.count[0]) == int(expected.count[0]) < 64
    assert (blank.labels[0, int(blank.count[0]) :] == -1).all()


def test_nothing_above_the_threshold():
    model = build()
    with torch.no_grad():
        deployed = model.deploy(torch.randn(2, 3, 64, 64), 1.0)
    assert deployed.count.tolist() == [0, 0]
    assert (deployed.labels == -1).all()
    assert deployed.boxes.abs().sum() == deployed.mask_params.abs().sum() == deployed.scores.sum() == 0


def test_half_precision_keeps_places_exact_and_outputs_float32():
    """In bfloat16 a cell beyond 256 would be off by a whole cell; the sum of cell and offset is float32."""
    model = build(f"{TINY}-conv-dynamic").bfloat16()
    y, x = torch.tensor([3]), torch.tensor([1001])
    patches = torch.zeros(1, 64 * 9, dtype=torch.bfloat16)
    with torch.no_grad():
        box = model.boxes_at(patches, y, x)
        deployed = model.deploy(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16))
        offset, size = model.offset.at(patches).float(), model.size.at(patches).float()
    center = (box[0, :2] + box[0, 2:]) / 2
    torch.testing.assert_close(center, torch.tensor([1001.0, 3.0]) + offset[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(box[0, 2:] - box[0, :2], 8 * size[0].exp(), rtol=1e-4, atol=0)
    floats = (deployed.boxes, deployed.scores, deployed.mask_params, deployed.mask_features)
    assert {t.dtype for t in floats} == {torch.float32}


def test_box_coding():
    raw = torch.tensor([-2.0, 0.0, math.log(2), 100.0], dtype=torch.float64)
    exp = decode_size(raw, "exp")
    np.testing.assert_allclose(exp.numpy(), [8 * math.exp(-2), 8, 16, 8 * math.exp(6)], rtol=1e-15)
    assert decode_size(raw, "linear").tolist() == [0.0, 0.0, math.log(2), 100.0]


def test_a_linear_size_head_starts_where_it_has_a_gradient():
    model = CenterMask(ModelConfig.from_name(f"{TINY}-conv-none", class_names=("a",), box_coding="linear"))
    size = decode_size(model.size(torch.randn(1, 64, 8, 8)), "linear")
    assert float(size.detach().min()) > 4
    start = CenterMask(ModelConfig.from_name(f"{TINY}-conv-none", class_names=("a",))).size.out.bias
    assert start.tolist() == [0.0, 0.0]


# ---- mask heads ----


def boxes_in_cells(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    corners = rng.uniform(0, 1, (count, 2, 2)) * (width, height)
    low, high = corners.min(1), corners.max(1)
    return np.concatenate([low, np.maximum(high, low + 1.5)], 1)


def test_dynamic_head_against_plain_loops():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 8, 5, 7))
    params = rng.normal(0, 0.5, (3, 169))
    boxes = np.concatenate([boxes_in_cells(rng, 2, 5, 7), [[2.0, 1.0, 2.25, 1.5]]])  # the last is below one cell
    owner = [0, 1, 1]
    arguments = (torch.tensor(features), torch.tensor(params), torch.tensor(boxes), torch.tensor(owner))
    found = dynamic_mask_logits(*arguments).numpy()
    for p in range(3):
        w0, w1, w2 = params[p, :80].reshape(8, 10), params[p, 80:144].reshape(8, 8), params[p, 144:152]
        b0, b1, b2 = params[p, 152:160], params[p, 160:168], params[p, 168]
        x0, y0, x1, y1 = boxes[p]
        side = max(x1 - x0, y1 - y0, 1.0)
        for i in range(5):
            for j in range(7):
                place = [2 * (j + 0.5 - (x0 + x1) / 2) / side, 2 * (i + 0.5 - (y0 + y1) / 2) / side]
                v = np.array([*place, *features[owner[p], :, i, j]])
                v = np.maximum(w0 @ v + b0, 0)
                v = np.maximum(w1 @ v + b1, 0)
                assert abs(found[p, i, j] - (w2 @ v + b2)) < SUM_ORDER * 10


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_head_against_plain_loops(channels):
    rng = np.random.default_rng(0)
    saliency = rng.normal(size=(2, channels, 5, 7))
    params = rng.normal(0, 2, (3, 1024))
    boxes = boxes_in_cells(rng, 3, 5, 7)
    owner, labels = [0, 1, 1], [2, 0, 1]
    arguments = (saliency, params, boxes, owner, labels)
    found = shape_mask_probability(*(torch.tensor(a) for a in arguments)).numpy()
    for p in range(3):
        shape = params[p].reshape(32, 32)
        x0, y0, x1, y1 = boxes[p]
        for i in range(5):
            for j in range(7):
                u = min(max((j + 0.5 - x0) / (x1 - x0) * 32 - 0.5, 0), 31)
                v = min(max((i + 0.5 - y0) / (y1 - y0) * 32 - 0.5, 0), 31)
                a, b = min(int(v), 30), min(int(u), 30)
                fy, fx = v - a, u - b
                logit = (1 - fy) * ((1 - fx) * shape[a, b] + fx * shape[a, b + 1])
                logit += fy * ((1 - fx) * shape[a + 1, b] + fx * shape[a + 1, b + 1])
                salient = saliency[owner[p], labels[p] if channels > 1 else 0, i, j]
                expected = 1 / (1 + math.exp(-logit)) / (1 + math.exp(-salient))
                assert abs(found[p, i, j] - expected) < SUM_ORDER * 10


@pytest.mark.parametrize(("head", "channels", "threshold"), [("dynamic", 8, 0.0), ("shape", 1, 0.5), ("shape", 3, 0.5)])
def test_mask_heads_of_training_equal_the_core(head, channels, threshold):
    """What is trained is what is deployed: upsampled, thresholded and clipped, it is the core's bitmap."""
    rng = np.random.default_rng(3)
    height, width, count = 12, 16, 6
    features = rng.normal(0.5, 1.5, (channels, height, width)).astype(np.float32)
    params = rng.normal(*(0, 0.5) if head == "dynamic" else (1, 2), (count, 169 if head == "dynamic" else 1024))
    params = params.astype(np.float32)
    boxes = boxes_in_cells(rng, count, height, width).astype(np.float32)
    labels = rng.integers(channels, size=count)
    args = [torch.tensor(a).double() for a in (features[None], params, boxes)]
    owner = torch.zeros(count, dtype=torch.int64)
    if head == "dynamic":
        values = dynamic_mask_logits(*args, owner)
    else:
        values = shape_mask_probability(*args, owner, torch.tensor(labels))
    # Linear between cells, edge cells continued beyond the map: what `interpolate` does without aligned corners.
    values = F.interpolate(values[:, None], scale_factor=4, mode="bilinear", align_corners=False)[:, 0].numpy()
    size = (4 * height, 4 * width)
    bitmaps = ops.assemble_masks(
        features, params, 4 * boxes, head=head, labels=labels, image_size=size, box_margin=0.1, output="bitmap"
    )
    compared = ones = 0
    for value, box, (left, top, bitmap) in zip(values, boxes * 4.0, bitmaps, strict=True):
        mask = np.zeros(size, bool)
        mask[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
        grow = 0.1 * (box[2:] - box[:2])
        x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
        inside = ((y >= box[1] - grow[1]) & (y < box[3] + grow[1]))[:, None]
        inside = inside & ((x >= box[0] - grow[0]) & (x < box[2] + grow[0]))
        clear = np.abs(value - threshold) > 1e-5  # the core computes in float32
        np.testing.assert_array_equal(mask[clear], ((value >= threshold) & inside)[clear])
        compared += int((inside & clear).sum())
        ones += int(mask.sum())
    assert 0.05 * compared < ones < 0.95 * compared


def test_names_of_parameters_stay():
    """A checkpoint of today must load tomorrow: these names are a file format."""
    model = build("lite0-dcn-dynamic")
    tops = OrderedDict.fromkeys(name.split(".")[0] for name in model.state_dict())
    assert list(tops) == ["backbone", "neck", "heatmap", "size", "offset", "mask_params", "mask_features"]
    neck = {name.removeprefix("neck.stages.0.") for name in model.state_dict() if name.startswith("neck.stages.0.")}
    assert {"conv.weight", "conv.bias", "conv.conv_offset.weight", "bn1.weight", "up.weight", "bn2.weight"} <= neck
    assert "neck.laterals.2.0.weight" in model.state_dict()
    assert {"heatmap.hidden.weight", "heatmap.out.bias", "mask_features.bn.running_var"} <= set(model.state_dict())
