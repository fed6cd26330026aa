"""The training loop on a made-up data set: exact resume, guards, schedules, partial labels."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

import torch
from shapes_data import batch_of, shapes_folder, tiny

from centermask.config import ModelConfig, PreprocessConfig
from centermask.nn.model import CenterMask
from centermask.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from centermask.training.evaluate import evaluate_model
from centermask.training.loop import Trainer
from centermask.training.objective import Objective
from centermask.training.optimizer import freeze_backbone, learning_rate_factor, parameter_groups
from centermask.training.settings import TrainConfig

TINY = "test_efficientnet"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("shapes"), splits=("train", "val"))


@pytest.fixture
def settings(shapes, tmp_path):
    """Six pictures in batches of two: three steps an epoch."""
    return TrainConfig(
        data=(str(shapes),),
        model=f"{TINY}-conv-dynamic",
        out=str(tmp_path / "run"),
        epochs=2,
        size=64,
        batch_size=2,
        pretrained=False,
        val_split="",
        warmup_steps=2,
        box_samples=4,
        mask_samples=2,
        workers=0,
        accelerator="cpu",
    )


class Stopped(Exception):
    pass


class Recorded(Trainer):
    """Keeps the terms of each step; saves and stops in the middle of an epoch if told to."""

    def __init__(self, config, evaluate=None, stop_after=0):
        self.terms = []
        self.stop_after = stop_after
        super().__init__(config, evaluate)

    def train_step(self, batch):
        self.terms.append(super().train_step(batch))
        if self.step == self.stop_after:
            self.save()
            raise Stopped
        return self.terms[-1]


def weights_of(path):
    checkpoint = load_checkpoint(path)
    return {**checkpoint.model, **{f"raw.{k}": v for k, v in checkpoint.training["weights"].items()}}


# ---- going on ----


@pytest.mark.parametrize(
    ("variant", "schedule", "extras"),
    [
        ("conv-dynamic", "cosine", {"aux_weight": 1.0, "mosaic": 0.5, "copy_paste": 0.5, "rotation": 10.0}),
        ("dcn-shape", "step", {"multi_scale": 0.5}),
    ],
)
def test_a_stopped_run_goes_on_exactly(settings, tmp_path, variant, schedule, extras, caplog):
    settings = replace(settings, model=f"{TINY}-{variant}", schedule=schedule, **extras)
    whole = Recorded(settings)
    whole.fit()
    assert len(whole.terms) == 6
    other = replace(settings, out=str(tmp_path / "other"))
    first = Recorded(other, stop_after=4)  # inside the second epoch
    with pytest.raises(Stopped):
        first.fit()
    torch.rand(7)  # whatever else happened to the process
    with caplog.at_level(logging.WARNING):
        second = Recorded(replace(other, resume=True))
        second.fit()
    assert "not as if never stopped" not in caplog.text
    assert first.terms + second.terms == whole.terms  # to the last bit
    assert ("semantic" in whole.terms[0]) == ("aux_weight" in extras)
    straight, resumed = weights_of(tmp_path / "run/last.pt"), weights_of(tmp_path / "other/last.pt")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    final = load_checkpoint(tmp_path / "other/final.pt")
    assert not final.training
    assert final.config.class_names == ("box", "disc")
    assert final.build()(torch.zeros(1, 3, 64, 64)).heatmap.isfinite().all()


def test_an_interrupted_run_goes_on_where_it_stopped(settings):
    trainer = Recorded(settings)
    trainer.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    second = Recorded(replace(settings, resume=True))
    assert second.step == 1
    second.fit()
    straight = Recorded(replace(settings, out=settings.out + "2"))
    straight.fit()
    assert trainer.terms + second.terms == straight.terms


def test_losses_are_finite_and_the_rate_is_used(settings):
    trainer = Recorded(settings)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.fit()
    assert all(math.isfinite(v) for terms in trainer.terms for v in terms.values())
    assert {"heatmap", "box", "mask", "total", "norm"} == set(trainer.terms[0])
    rate = 1e-3 * 2 / 16  # the batch of 2 at the rate of 16
    factor = learning_rate_factor(5, 6, 2, "cosine")
    rates = sorted({group["lr"] for group in trainer.optimizer.param_groups})
    assert rates == pytest.approx([rate * factor / 2, rate * factor])
    changed = [k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])]
    assert {"backbone", "neck", "heatmap", "size", "offset", "mask_params", "mask_features"} == {
        k.split(".")[0] for k in changed
    }


def test_what_changed_since_the_start_is_said(settings, caplog):
    with pytest.raises(Stopped):
        Recorded(settings, stop_after=1).fit()
    with caplog.at_level(logging.WARNING):
        Recorded(replace(settings, resume=True, learning_rate=2e-3, eval_every=9), None)
    assert "learning_rate was 0.001 and is now 0.002" in caplog.text
    assert "eval_every" not in caplog.text
    with pytest.raises(
        ValueError, match=r"last\.pt has size 64, now 96: a run goes on as it began.*--init-from .*best\.pt"
    ):
        Trainer(replace(settings, resume=True, size=96))
    with pytest.raises(ValueError, match=r"neck conv, now dcn"):
        Trainer(replace(settings, resume=True, neck="dcn"))
    with pytest.raises(ValueError, match="holds a run already"):
        Trainer(settings)
    save_checkpoint(f"{settings.out}/last.pt", load_checkpoint(f"{settings.out}/last.pt").__class__(tiny().config, {}))
    with pytest.raises(ValueError, match="no state of a run"):
        Trainer(replace(settings, resume=True))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Trainer(replace(settings, resume=True, out=settings.out + "2"))


def test_best_is_the_best_and_a_finished_run_keeps_its_figures(settings):
    figures = iter([{"mask_ap": 0.3}, {"mask_ap": 0.5}, {"mask_ap": 0.4}, {"mask_ap": 0.4}])
    seen = []

    def evaluate(model, data):
        assert not model.training
        assert model is not trainer.model  # the average
        seen.append((trainer.step, len(data)))
        return next(figures)

    settings = replace(settings, val_split="val", epochs=3, eval_every=1)
    trainer = Recorded(settings, evaluate)
    assert trainer.fit() == {"mask_ap": 0.4}
    assert seen == [(3, 6), (6, 6), (9, 6)]
    best, final = (load_checkpoint(f"{settings.out}/{name}.pt") for name in ("best", "final"))
    assert (best.info["ap"], best.info["step"]) == ({"mask_ap": 0.5}, 6)
    assert (final.info["ap"], final.info["step"]) == ({"mask_ap": 0.4}, 9)
    trainer = Recorded(replace(settings, resume=True), evaluate)
    assert trainer.fit() == {"mask_ap": 0.4}
    assert trainer.terms == []
    assert load_checkpoint(f"{settings.out}/best.pt").info["ap"] == {"mask_ap": 0.5}
    assert load_checkpoint(f"{settings.out}/final.pt").info["ap"] == {"mask_ap": 0.4}


def test_files_of_a_run_with_its_own_evaluation_can_be_read(settings):
    Trainer(replace(settings, val_split="train"), evaluate_model).fit()
    for name in ("best", "final", "last"):
        assert load_checkpoint(f"{settings.out}/{name}.pt").build()
    assert load_checkpoint(f"{settings.out}/final.pt").info["ap"]["latency_ms"] > 0


def test_start_from_other_weights(settings, tmp_path):
    source = tiny(classes=("disc", "other", "box"))
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    save_checkpoint(tmp_path / "source.pt", Checkpoint(source.config, source.state_dict()))
    trainer = Trainer(replace(settings, init_from=str(tmp_path / "source.pt")))
    own = trainer.model.state_dict()
    theirs = source.state_dict()
    assert torch.equal(own["neck.stages.0.conv.weight"], theirs["neck.stages.0.conv.weight"])
    assert torch.equal(own["heatmap.out.bias"], theirs["heatmap.out.bias"][[2, 0]])  # box, disc
    save_checkpoint(tmp_path / "alien.pt", Checkpoint(source.config, {"fc.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match="no weight fits"):
        Trainer(replace(settings, init_from=str(tmp_path / "alien.pt")))


def test_a_mask_head_is_added_to_a_converted_detector(settings, shapes, tmp_path):
    """What a conversion gives: linear sizes, other widths, BGR, pictures at their own size, no masks."""
    preprocess = PreprocessConfig(policy="keep", color="bgr", mean=(104.0, 114.0, 120.0), std=(73.0, 70.0, 71.0))
    detector = CenterMask(
        ModelConfig(
            backbone=TINY,
            neck="conv",
            mask_head="none",
            class_names=("disc", "zebra", "box"),
            category_ids=(1, 2, 3),
            neck_channels=(32, 24, 16),
            head_channels=12,
            offset_head=False,
            preprocess=preprocess,
        )
    )
    save_checkpoint(tmp_path / "detector.pt", Checkpoint(detector.config, detector.state_dict()))
    start = replace(settings, init_from=str(tmp_path / "detector.pt"), epochs=1, box_loss="l1")
    trainer = Trainer(start)
    config = trainer.model.config
    assert (config.mask_head, config.box_coding, config.offset_head) == ("dynamic", "linear", False)
    assert (config.neck_channels, config.head_channels) == ((32, 24, 16), 12)
    assert config.preprocess == replace(preprocess, size=64)
    own, theirs = trainer.model.state_dict(), detector.state_dict()
    same = [name for name in theirs if not name.startswith("heatmap.out")]
    assert all(torch.equal(own[name], theirs[name]) for name in same)
    assert {name.split(".")[0] for name in own if name not in theirs} == {"mask_params", "mask_features"}
    trainer.fit()
    assert load_checkpoint(trainer.out / "final.pt").config == config
    # Going on needs no detector any more.
    assert Trainer(replace(start, init_from="", resume=True, epochs=2)).model.config == config


# ---- guards ----


@pytest.mark.parametrize(
    ("broken", "term", "layer"),
    [
        ("size.out.weight", "'box'", "size.out"),
        ("mask_params.hidden.bias", "'mask'", "mask_params.hidden"),
        ("heatmap.out.bias", "'heatmap'", "heatmap.out"),
        ("backbone.body.conv_stem.weight", "'heatmap'", "backbone.body.conv_stem"),
    ],
)
def test_a_loss_that_breaks_names_term_layer_and_pictures(settings, shapes, broken, term, layer):
    trainer = Trainer(settings)
    with torch.no_grad():
        dict(trainer.model.named_parameters())[broken].view(-1)[0] = math.nan
    with pytest.raises(FloatingPointError) as caught:
        trainer.train_step(batch_of(shapes))
    text = str(caught.value)
    assert term in text
    assert f"first layer with a bad output: {layer};" in text
    assert text.count(str(shapes / "images")) == 2
    assert "step 0" in text


@pytest.mark.parametrize("clip", [10.0, 0.0])
def test_a_gradient_that_breaks_changes_no_weight(settings, shapes, clip):
    trainer = Trainer(replace(settings, clip=clip))
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.model.offset.out.bias.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match=r"gradients not finite: \['offset\.out\.bias'\]"):
        trainer.train_step(batch_of(shapes))
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.named_parameters())


def test_clipping_bounds_the_step_and_reports_the_norm(settings, shapes):
    norms = {}
    for clip in (0.0, 0.01):
        trainer = Trainer(replace(settings, clip=clip))
        trainer.optimizer.zero_grad = lambda: None  # keep the gradients to look at
        norms[clip] = trainer.train_step(batch_of(shapes))["norm"]
        squares = sum(float((p.grad.double() ** 2).sum()) for p in trainer.model.parameters() if p.grad is not None)
        # clip_grad_norm_ divides by norm + 1e-6; float32 sums over 10^5 gradients.
        assert math.sqrt(squares) == pytest.approx(clip or norms[clip], rel=1e-3)
    assert norms[0.0] == pytest.approx(norms[0.01], rel=1e-6)


def test_settings_out_of_range():
    for changes, message in (
        ({"size": 100}, "multiple of 32"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"clip": -1.0}, "clip must not be negative"),
        ({"ema": 1.0}, "ema must be"),
        ({"schedule": "cosin"}, "schedule must be one of"),
        ({"radius": "iou0.7"}, "radius must be one of"),
        ({"box_loss": "iou"}, "box_loss must be one of"),
        ({"precision": "16"}, "precision must be one of"),
        ({"learning_rate": math.nan}, "learning_rate must be positive"),
        ({"data": ("a", "b"), "data_weights": (1.0,)}, "one number for each of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**changes)


def test_freezing_more_stages_than_there_are(settings):
    with pytest.raises(ValueError, match="cannot freeze 9 stages"):
        Trainer(replace(settings, freeze_stages=9))


def test_mixed_precision_leaves_boxes_and_losses_in_float32(settings, shapes):
    trainer = Trainer(replace(settings, precision="bf16"))
    batch = batch_of(shapes)
    seen = {}

    def keep(boxes, *_arguments):
        seen["boxes"] = boxes
        return original(boxes, *_arguments)

    module = __import__("centermask.training.objective", fromlist=["heatmap_targets"])
    original = module.heatmap_targets
    module.heatmap_targets = keep
    try:
        terms = trainer.train_step(batch)
    finally:
        module.heatmap_targets = original
    assert torch.equal(seen["boxes"], batch.boxes / 4)
    reference = Trainer(replace(settings, out=settings.out + "32")).train_step(batch)
    for name in ("heatmap", "box", "mask"):
        # bfloat16 has 8 bits; a network of some twenty layers, averaged over its cells.
        assert terms[name] == pytest.approx(reference[name], rel=0.05)


# ---- schedules and groups ----


def test_learning_rate_schedules():
    cosine = [learning_rate_factor(s, 100, 10, "cosine") for s in range(101)]
    for s, value in enumerate(cosine):
        expected = min(1, (s + 1) / 10) * (0.01 + 0.99 * (1 + math.cos(math.pi * s / 100)) / 2)
        assert value == pytest.approx(expected)
    assert cosine[-1] == pytest.approx(0.01)
    step = [learning_rate_factor(s, 90, 0, "step") for s in range(90)]
    assert step == pytest.approx([1.0] * 60 + [0.1] * 20 + [0.01] * 10)
    assert learning_rate_factor(0, 100, 4, "step") == 0.25


def test_parameter_groups():
    config = TrainConfig(backbone_rate=0.1, offset_rate=0.25, weight_decay=0.3, aux_weight=1.0)
    objective = Objective(tiny(f"{TINY}-dcn-dynamic"), config)
    groups = parameter_groups(objective, config, 2.0)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in objective.parameters())
    names = {id(p): n for n, p in objective.named_parameters()}
    assert "semantic.out.bias" in names.values()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            in_backbone, places = name.startswith("model.backbone."), ".conv_offset." in name
            assert group["lr"] == (0.2 if in_backbone else 0.5 if places else 2.0)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize(
    ("backbone", "stages", "frozen", "free"),
    [
        ("lite0", 2, ("conv_stem", "bn1", "blocks.0", "blocks.1"), ("blocks.2", "blocks.6")),
        ("resnet18", 1, ("conv1", "bn1", "layer1"), ("layer2", "layer4")),
        ("convnext_atto", 1, ("stem_0", "stages_0"), ("stages_1", "stages_3")),
    ],
)
def test_frozen_stages(backbone, stages, frozen, free):
    model = tiny(f"{backbone}-conv-none")
    modules = freeze_backbone(model, stages)
    learning = {n for n, p in model.backbone.body.named_parameters() if p.requires_grad}
    fixed = {n for n, p in model.backbone.body.named_parameters() if not p.requires_grad}
    for name in frozen:
        assert any(n.startswith(f"{name}.") for n in fixed), name
        assert not any(n.startswith(f"{name}.") for n in learning), name
    for name in free:
        assert any(n.startswith(f"{name}.") for n in learning), name
        assert not any(n.startswith(f"{name}.") for n in fixed), name
    assert {id(p) for m in modules for p in m.parameters()} == {
        id(p) for p in model.backbone.body.parameters() if not p.requires_grad
    }
    assert freeze_backbone(tiny(), 0) == []


def test_frozen_stages_keep_weights_and_statistics(settings):
    trainer = Recorded(replace(settings, freeze_stages=1, epochs=1))
    stem = ("backbone.body.conv_stem", "backbone.body.blocks.0")
    frozen = [k for k in trainer.model.state_dict() if k.startswith(stem)]
    before = {k: trainer.model.state_dict()[k].clone() for k in frozen}
    later = trainer.model.state_dict()["backbone.body.blocks.1.0.bn1.running_mean"].clone()
    trainer.fit()
    after = trainer.model.state_dict()
    assert frozen
    assert all(torch.equal(after[k], before[k]) for k in frozen)
    assert not torch.equal(after["backbone.body.blocks.1.0.bn1.running_mean"], later)


def test_average_of_weights(settings, shapes):
    """keep = min(ema, (1 + n) / (10 + n)) after n updates, the first being a copy."""
    trainer = Trainer(replace(settings, ema=0.15))
    name = "heatmap.out.bias"
    expected = None
    for n in range(3):
        trainer.train_step(batch_of(shapes))
        current = trainer.model.state_dict()[name].double()
        keep = min(0.15, (1 + n) / (10 + n))
        expected = current.clone() if expected is None else expected * keep + current * (1 - keep)
        found = trainer.average.module.state_dict()[name].double()
        # float32 roundings of values of size 2.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert int(trainer.average.module.state_dict()["neck.stages.0.bn1.num_batches_tracked"]) == 3
    assert Trainer(replace(settings, ema=0.0, out=settings.out + "0")).average is None


def test_weights_of_joined_sets_with_one_folder_name(settings, shapes, tmp_path):
    twin = tmp_path / "elsewhere" / shapes.name
    shutil.copytree(shapes, twin)
    trainer = Trainer(replace(settings, data=(str(shapes), str(twin)), data_weights=(1.0, 0.5)))
    assert trainer.sampler.factors.tolist() == [1.0] * 6 + [0.5] * 6
    assert trainer.steps_per_epoch == 5  # nine pictures, filled up to a multiple of two


def test_the_saved_file_names_its_run(settings):
    with pytest.raises(Stopped):
        Recorded(settings, stop_after=1).fit()
    saved = load_checkpoint(f"{settings.out}/last.pt")
    assert saved.training["settings"]["learning_rate"] == 1e-3
    assert settings.differences(saved.training["settings"]) == {}
    assert saved.info["images"] == 6


def test_a_class_without_validation_data_does_not_stop_the_run(shapes, settings, tmp_path, caplog):
    discs = shapes_folder(tmp_path / "discs", categories=("disc",))  # a set without val.json
    boxes = shapes_folder(tmp_path / "boxes", categories=("box",), splits=("train", "val"))
    config = replace(settings, data=(str(discs), str(boxes)), val_split="val")
    seen = []
    trainer = Trainer(config, lambda model, data: seen.append(data.class_names) or {"mask_ap": 0.0})
    assert trainer.data.class_names == ("disc", "box")
    assert trainer.val is not None
    assert trainer.val.class_names == ("box",)
    assert "no val data has the classes ['disc']" in caplog.text
