"""The losses of whole batches: partial labels, no objects, exact values where they are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from shapes_data import batch_of, shapes_folder, tiny

from centermask.nn.model import decode_size
from centermask.training.augment import TrainTransform
from centermask.training.data import load_datasets
from centermask.training.loader import collate, empty_sample, make_loader
from centermask.training.objective import LossTask, Objective
from centermask.training.settings import TrainConfig


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("shapes"))


def loss_terms(objective, batch, seed=0):
    task = LossTask(batch, torch.Generator().manual_seed(seed), torch.tensor(max(1.0, float(len(batch.labels)))))
    return objective(task)


def test_an_unknown_class_gets_no_gradient(tmp_path):
    """Pictures of a set that labels boxes alone say nothing about discs, though they show some."""
    both = shapes_folder(tmp_path / "both", pictures=1)
    boxes = shapes_folder(tmp_path / "boxes", pictures=1, categories=("box",))
    data = load_datasets([both, boxes], "train")
    assert data.class_names == ("box", "disc")
    objective = Objective(tiny(), TrainConfig())
    loader, _ = make_loader(data, TrainTransform(64), batch_size=2, seed=0)
    batch = next(iter(loader))
    partial = [not known for known in batch.known_classes[:, 1].tolist()].index(True)
    captured = {}

    def keep(_module, _inputs, output):
        output.retain_grad()
        captured["heatmap"] = output

    objective.model.heatmap.out.register_forward_hook(keep)
    sum(loss_terms(objective, batch).values()).backward()
    gradient = captured["heatmap"].grad
    assert gradient[partial, 1].abs().sum() == 0
    assert (gradient[partial, 0].abs() > 0).all()
    assert (gradient[1 - partial, 1].abs() > 0).all()


@pytest.mark.parametrize("mask_head", ["dynamic", "shape", "none"])
def test_a_batch_without_objects(mask_head):
    """Only the heatmap learns; the other terms are zero, with zero gradients rather than none (DDP wants all)."""
    objective = Objective(tiny(f"test_efficientnet-conv-{mask_head}"), TrainConfig())
    sample = replace(empty_sample(64, 2, 5), known_classes=np.ones(2, dtype=bool))
    terms = loss_terms(objective, collate([sample, sample]))
    assert float(terms["heatmap"].detach()) > 0
    assert [float(terms[k].detach()) for k in ("box", "mask") if k in terms] == [0.0] * (len(terms) - 1)
    sum(terms.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in objective.model.parameters())
    assert objective.model.size.out.weight.grad.abs().sum() == 0


def test_a_picture_that_could_not_be_read_teaches_nothing():
    objective = Objective(tiny(), TrainConfig())
    terms = loss_terms(objective, collate([empty_sample(64, 2, 5)] * 2))
    assert all(float(value.detach()) == 0 for value in terms.values())


def test_a_limit_on_masks_keeps_their_mean(shapes):
    batch = batch_of(shapes, 6)
    objective = Objective(tiny().eval(), TrainConfig(mask_samples=3, mask_jitter=0.0))
    with torch.no_grad():
        whole = float(loss_terms(objective, batch)["mask"])
        objective.config = replace(objective.config, mask_limit=12)
        parts = [float(loss_terms(objective, batch, seed)["mask"]) for seed in range(12)]
    assert np.std(parts) > 0
    # The mean of twelve draws: within five of its own standard errors of the whole.
    assert abs(np.mean(parts) - whole) < 5 * np.std(parts) / math.sqrt(11)


def test_l1_boxes_as_centernet(shapes):
    """One cell an object: |size - target| * 0.1 + |offset - target|, summed over both axes and objects."""
    batch = batch_of(shapes, 4)
    model = tiny(box_coding="linear").eval()
    with torch.no_grad():
        model.size.out.bias[0] = -3.0  # below zero, where a size cut off at 0 would have no gradient
    objective = Objective(model, TrainConfig(box_loss="l1", box_samples=1, box_weight=1.0))
    terms = loss_terms(objective, batch)
    dense = model(objective.normalised(batch))
    size, offset = model.size(dense.features), model.offset(dense.features)
    expected = 0.0
    for box, owner in zip((batch.boxes / 4).tolist(), batch.batch_index.tolist(), strict=True):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        x, y = int(cx), int(cy)
        for axis, side, place in ((0, box[2] - box[0], cx - x), (1, box[3] - box[1], cy - y)):
            expected += 0.1 * abs(float(size[owner, axis, y, x]) - side)
            expected += abs(float(offset[owner, axis, y, x]) - place)
    assert float(terms["box"].detach()) == pytest.approx(expected / len(batch.labels), rel=1e-5)
    terms["box"].backward()
    assert float(model.size.out.bias.grad[0]) == pytest.approx(-0.1, rel=1e-5)


def test_a_perfect_prediction_has_no_loss(shapes):
    """Heads that say the truth give terms of almost zero: targets, coding and losses speak one language."""
    batch = batch_of(shapes, 2)
    keep = batch.batch_index == 0
    box, label = batch.boxes[keep][0] / 4, batch.labels[keep][0]
    model = tiny().eval()
    config = TrainConfig(box_samples=1, mask_samples=1, mask_jitter=0.0)
    objective = Objective(model, config)
    one = replace(
        batch,
        boxes=batch.boxes[keep][:1],
        labels=label[None],
        masks=batch.masks[keep][:1],
        batch_index=torch.zeros(1, dtype=torch.int64),
    )
    center = (box[:2] + box[2:]) / 2
    cell = center.floor()
    with torch.no_grad():
        for head, value in (
            (model.size, torch.log((box[2:] - box[:2]) / 8)),
            (model.offset, center - cell),
            # One hidden unit that passes feature 0 through both layers.
            (model.mask_params, torch.zeros(169)),
        ):
            head.out.weight.zero_()
            head.out.bias.copy_(value)
        bias = model.mask_params.out.bias
        bias[2], bias[80], bias[144], bias[168] = 1, 1, 1, -20
        dense = model(objective.normalised(one))
        heatmap = torch.full_like(dense.heatmap, -30)
        heatmap[0, label, int(cell[1]), int(cell[0])] = 30
        features = torch.zeros_like(dense.mask_features)
        features[0, 0] = 40.0 * (one.masks[0] > 127)
        perfect = dense._replace(heatmap=heatmap, mask_features=features)
        terms = objective.losses(perfect, one, torch.Generator().manual_seed(0), torch.tensor(1.0))
    assert float(terms["heatmap"]) < 1e-9
    assert float(terms["box"]) < 1e-5
    assert float(terms["mask"]) < 3 * 0.1  # the true mask has shares of cells at its rim
    assert decode_size(model.size.out.bias.detach(), "exp").tolist() == pytest.approx((box[2:] - box[:2]).tolist())


def test_bgr_models_get_their_channels_before_mean_and_std(shapes):
    batch = batch_of(shapes)
    config = tiny().config.preprocess
    model = tiny(preprocess=replace(config, color="bgr", mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0)))
    found = Objective(model, TrainConfig()).normalised(batch)
    expected = (batch.image.numpy()[..., ::-1].astype(float) - [10, 20, 30]) / [1, 2, 4]
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(("mask_head", "channels"), [("dynamic", 8), ("shape", 1), ("shape", 2), ("none", 0)])
def test_semantic_loss_against_loops(shapes, mask_head, channels):
    """Per class, or for one saliency map of all; free cells count only where all that the map shows is labelled."""
    config = TrainConfig(aux_weight=1.0)
    model = tiny(f"test_efficientnet-conv-{mask_head}", mask_channels=channels)
    objective = Objective(model, config)
    assert (objective.semantic is None) == (mask_head == "shape")
    batch = batch_of(shapes)
    known = torch.tensor([[True, True], [True, False]])
    ignore = torch.zeros(1, *batch.masks.shape[1:], dtype=torch.uint8)
    ignore[0, 3:5, 2:6] = 9
    first = torch.zeros(1, dtype=torch.int64)
    batch = replace(batch, known_classes=known, ignore=ignore, ignore_labels=first + 1, ignore_batch_index=first)
    dense = objective.dense(objective.normalised(batch))
    logits = (dense.mask_features if mask_head == "shape" else objective.semantic(dense.features)).detach().double()
    total = covered_cells = counted = 0.0
    for n in range(2):
        for c in range(logits.shape[1]):
            per_class = logits.shape[1] == 2
            for y in range(logits.shape[2]):
                for x in range(logits.shape[3]):
                    mine = [
                        int(batch.masks[t, y, x]) / 255
                        for t in range(len(batch.labels))
                        if batch.batch_index[t] == n and (not per_class or batch.labels[t] == c)
                    ]
                    share = max(mine, default=0.0)
                    covered_cells += share
                    hidden = n == 0 and ignore[0, y, x] > 0 and (not per_class or c == 1)
                    sure = bool(known[n, c]) if per_class else bool(known[n].all())
                    counts = (sure and not (hidden and share < 1)) if per_class else share > 0 or (sure and not hidden)
                    p = 1 / (1 + math.exp(-float(logits[n, c, y, x])))
                    counted += counts
                    if counts and mask_head == "shape":  # plain cross entropy, per cell
                        total -= share * math.log(p) + (1 - share) * math.log(1 - p)
                    elif counts:  # focal loss, per covered cell
                        total -= 0.25 * share * (1 - p) ** 2 * math.log(p) + 0.75 * (1 - share) * p**2 * math.log(1 - p)
    found = objective.semantic_loss(dense, batch)
    normaliser = counted if mask_head == "shape" else max(covered_cells, 1.0)
    assert float(found.detach()) == pytest.approx(total / normaliser, rel=1e-4)  # float32 sums
