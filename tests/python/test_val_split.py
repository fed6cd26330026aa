"""What a training run is judged on, when the data set has no val split, or one that does not fit."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

from shapes_data import shapes_folder

from centermask.training.coco_reader import read_json
from centermask.training.data import DataError
from centermask.training.evaluate import _matched_files, _stand_in
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
    assert "no val split: 1 of its 8 pictures held out as val" in caplog.text
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


def test_the_run_records_what_it_held_out(tmp_path: Path) -> None:
    folder = shapes_folder(tmp_path / "shapes", pictures=8)
    trainer = Trainer(config(folder, tmp_path / "run", "valid"), lambda model, data: {"mask_ap": 0.0})
    trainer.save()
    source = read_json(folder, "val", make_val=True)
    assert "held out as val" in _stand_in(str(tmp_path / "run/last.pt"), source)
    assert "these 1 pictures may have been trained on" in _stand_in("a.onnx", source)
    Trainer(config(folder, tmp_path / "all", ""), lambda model, data: {"mask_ap": 0.0}).save()
    assert "may have been trained on" in _stand_in(str(tmp_path / "all/last.pt"), source)
    later = replace(config(folder, tmp_path / "all"), resume=True)
    assert Trainer(later, lambda model, data: {"mask_ap": 0.0}).held_out == []


def test_results_are_matched_by_the_end_of_their_paths() -> None:
    pictures = {1: Path("/d/images/a/0.png"), 2: Path("/d/images/b/0.png"), 3: Path("/d/images/1.png")}
    files = {7: Path("b/0.png"), 8: Path("a/0.png"), 9: Path("out/1.png"), 10: Path("2.png")}
    assert _matched_files(Path("r.json"), files, pictures) == {7: 2, 8: 1, 9: 3}
    with pytest.raises(ValueError, match=r"0\.png may be"):
        _matched_files(Path("r.json"), {7: Path("0.png")}, pictures)
    with pytest.raises(ValueError, match="may both be"):
        _matched_files(Path("r.json"), {7: Path("x/1.png"), 8: Path("y/1.png")}, pictures)
