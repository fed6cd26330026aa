"""What a training run is judged on, when the data set has no val split, or one that does not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

from shapes_data import shapes_folder

from centermask.training.data import DataError
from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig


def config(folder: Path, out: Path, val_split: str = "val") -> TrainConfig:
    return TrainConfig(
        data=(str(folder),), model="test_efficientnet-conv-dynamic", out=str(out), epochs=1, size=64, batch_size=2,
        pretrained=False, val_split=val_split, workers=0, accelerator="cpu",
    )  # fmt: skip


def test_a_run_holds_out_what_it_is_judged_on_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shapes_folder(tmp_path / "shapes", pictures=8)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config(folder, tmp_path / "run"), lambda model, data: {"mask_ap": 0.0})
    assert "no val split: 1 of its 8 pictures are held out as val" in caplog.text
    assert trainer.val is not None
    names = [{record.path.name for record in data.records} for data in (trainer.data, trainer.val)]
    assert [len(part) for part in names] == [7, 1]
    assert not names[0] & names[1]


def test_nothing_is_held_out_for_a_run_that_is_not_judged(tmp_path: Path) -> None:
    folder = shapes_folder(tmp_path / "shapes")
    trainer = Trainer(config(folder, tmp_path / "run", val_split=""), lambda model, data: {"mask_ap": 0.0})
    assert trainer.val is None
    assert len(trainer.data) == 6


def test_a_run_whose_val_pictures_are_gone_stops(tmp_path: Path) -> None:
    folder = shapes_folder(tmp_path / "shapes", splits=("train", "val"))
    text = (folder / "val.json").read_text()
    (folder / "val.json").write_text(text.replace(".png", "_gone.png").replace(".jpg", "_gone.jpg"))
    with pytest.raises(DataError, match=r"val\.json: no usable picture"):
        Trainer(config(folder, tmp_path / "run"), lambda model, data: {"mask_ap": 0.0})
