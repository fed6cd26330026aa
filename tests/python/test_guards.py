"""One test for each old setting that docs/convergence.md looks at: with nothing said, training keeps clear of it."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

import torch
from shapes_data import batch_of, shapes_folder, tiny
from torch.nn import functional as F

from centermask.nn.deform_conv import DeformConvPack
from centermask.training.loop import Trainer
from centermask.training.losses import focal_loss
from centermask.training.settings import TrainConfig


@pytest.fixture
def trainer(tmp_path):
    """All settings that guard are those of `TrainConfig`."""
    return Trainer(started(tmp_path))


def started(tmp_path, **changes):
    folder = shapes_folder(tmp_path / "shapes")
    return TrainConfig(
        data=(str(folder),), model="test_efficientnet-dcn-dynamic", out=str(tmp_path / "run"), size=64, batch_size=2,
        pretrained=False, val_split="", workers=0, accelerator="cpu", **changes,
    )  # fmt: skip


@pytest.mark.parametrize(("logit", "dtype"), [(20.0, torch.float32), (12.0, torch.float16)])
def test_a_score_of_exactly_one_breaks_the_old_loss_and_not_ours(logit, dtype):
    """Probabilities kept from 0 but not from 1, as in CenterNet's ports; float16 gets there at a logit of 12."""
    logits = torch.full((1, 1, 2, 2), logit, requires_grad=True)
    target = torch.tensor([[[[1.0, 0.8], [0.0, 0.0]]]])
    p = torch.sigmoid(logits.to(dtype)).float().clamp(min=1e-4)
    free = 1 - (target == 1).float()
    old = -(free * (1 - target) ** 4 * p**2 * (1 - p).log()).sum()
    assert not math.isfinite(old.item())
    ours = focal_loss(logits, target)
    ours.backward()
    assert math.isfinite(ours.item())
    assert logits.grad.isfinite().all()


def test_the_neck_samples_on_the_grid_at_first(trainer):
    """Zero offsets and equal weights: the deformable convolution begins as half a plain one."""
    packs = [m for m in trainer.model.neck.modules() if isinstance(m, DeformConvPack)]
    assert len(packs) == 3
    for pack in packs:
        x = torch.randn(1, pack.weight.shape[1], 8, 8)
        offset, mask = pack.places(x)
        assert not offset.any()
        assert (mask == 0.5).all()
        plain = F.conv2d(x, pack.weight * 0.5, pack.bias, padding=1)
        plain = plain.relu() if pack.activation == "relu" else plain
        torch.testing.assert_close(pack(x), plain, rtol=1e-4, atol=1e-4)  # float32 sums of 9 x 96 products


def test_both_necks_keep_the_cells_of_the_picture():
    """Padding 0 took a rim off at each stage: 8, 6, 12, 10, 20, 18, 36 cells for 256 pixels in place of 64."""
    for neck in ("conv", "dcn"):
        dense = tiny(f"test_efficientnet-{neck}-dynamic").eval()(torch.zeros(1, 3, 256, 256))
        assert dense.heatmap.shape[2:] == dense.mask_features.shape[2:] == (64, 64)


def test_the_rate_follows_the_batch(tmp_path):
    rates = {}
    for batch in (2, 4):
        config = started(tmp_path / str(batch))
        rates[batch] = Trainer(TrainConfig(**{**config.__dict__, "batch_size": batch})).rates
    assert rates[4] == pytest.approx([2 * rate for rate in rates[2]])
    assert max(rates[2]) == pytest.approx(TrainConfig().learning_rate * 2 / 16)


def test_offsets_learn_at_a_tenth_of_the_rate(trainer):
    groups = trainer.optimizer.param_groups
    rates = [group["lr"] for group in groups for name in group["names"] if "conv_offset" in name]
    assert rates == pytest.approx([0.1 * max(trainer.rates)] * 6)


def test_the_first_steps_are_small(trainer, tmp_path):
    trainer.train_step(batch_of(tmp_path / "shapes"))
    first = max(group["lr"] for group in trainer.optimizer.param_groups)
    assert first == pytest.approx(max(trainer.rates) / TrainConfig().warmup_steps, rel=0.01)
    assert first < 0.01 * max(trainer.rates)


def test_no_gradient_is_larger_than_its_bound(tmp_path):
    trainer = Trainer(started(tmp_path, heatmap_weight=1e5))
    trainer.optimizer.zero_grad = lambda: None  # keep the gradients to look at
    assert trainer.train_step(batch_of(tmp_path / "shapes"))["norm"] > 1000
    squares = sum(float((p.grad.double() ** 2).sum()) for p in trainer.model.parameters() if p.grad is not None)
    assert math.sqrt(squares) == pytest.approx(TrainConfig().clip, rel=1e-3)
    assert TrainConfig().clip == 10.0
