"""The options of `centermask train` are the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Literal

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("tqdm")

from coco_folders import annotation, coco_folder

from centermask import train_cli
from centermask.cli import main
from centermask.config import ModelConfig
from centermask.training.checkpoint import Checkpoint, save_checkpoint
from centermask.training.objective import default_model_config
from centermask.training.recipe import CHOSEN, DataFacts, Machine, choose
from centermask.training.settings import TrainConfig


def parse(*arguments: str) -> TrainConfig:
    values = vars(train_cli.build_parser().parse_args(arguments))
    values["data"] = tuple(values["data"])
    return TrainConfig(**values)


def test_defaults_are_those_of_the_dataclass() -> None:
    assert parse("a", "b") == TrainConfig(data=("a", "b"))
    assert train_cli.configure(["a", "b", "--no-auto"]) == (TrainConfig(data=("a", "b")), "")


def test_the_help_shows_defaults_that_say_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = train_cli.build_parser().format_help()
    for shown in (
        "(default: runs/train)",
        "(default: 0.998)",
        "(default: chosen; 512 with --no-auto)",
        "(default: True)",
    ):
        assert shown in text
    for empty in ("(default: None)", "(default: ())", "(default: )", "SUPPRESS"):
        assert empty not in text


def test_what_evaluation_needs_is_said_before_the_work(
    tmp_path, data: str, laptop: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    out = tmp_path / "out"
    assert main(["train", data, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "needs the package pycocotools: pip install 'centermask[train]'" in said.err
    assert not out.exists()
    # Not even the model is looked for.
    assert main(["eval", str(tmp_path / "no_model.pt"), data]) == 2
    assert "pip install 'centermask[train]'" in capsys.readouterr().err

    class Reached(RuntimeError):
        pass

    def reach(*_: object) -> None:
        raise Reached("the trainer")

    monkeypatch.setattr(train_cli, "Trainer", reach)
    assert main(["train", data, "--out", str(out), "--val-split", ""]) == 2
    assert "the trainer" in capsys.readouterr().err, "nobody asked for an evaluation"


def test_every_field_has_an_option() -> None:
    text = train_cli.build_parser().format_help()
    for field in dataclasses.fields(TrainConfig):
        assert field.name == "data" or "--" + field.name.replace("_", "-") in text, field.name


def test_options_of_every_type() -> None:
    config = parse(
        "a", "--model", "resnet18-conv-shape", "--epochs", "3", "--learning-rate", "0.01", "--no-pretrained",
        "--resume", "--classes", "cat, dog", "--scale", "0.5,1.5", "--precision", "bf16",
    )  # fmt: skip
    assert (config.model, config.epochs, config.learning_rate) == ("resnet18-conv-shape", 3, 0.01)
    assert (config.pretrained, config.resume) == (False, True)
    assert config.classes == ("cat", "dog")
    assert config.scale == (0.5, 1.5)
    assert config.precision == "bf16"


@pytest.mark.parametrize(
    "arguments",
    [[], ["a", "--epochs", "many"], ["a", "--scale", "1"], ["a", "--precision", "int4"], ["a", "--no-such-option"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert caught.value.code == 2


def test_a_type_that_a_command_line_cannot_take_is_a_defect_and_said() -> None:
    with pytest.raises(TypeError, match="the field 'x' has a type"):
        train_cli.add_option(argparse.ArgumentParser(), "x", dict, None, "")
    parser = argparse.ArgumentParser()
    train_cli.add_option(parser, "y", int | None, None, "")
    train_cli.add_option(parser, "z", Literal["a", "b"], "a", "")
    assert vars(parser.parse_args(["--y", "5"])) == {"y": 5, "z": "a"}


def test_neck_and_mask_head_replace_those_of_the_name() -> None:
    config = parse("a", "--model", "resnet18-dcn-dynamic", "--neck", "conv", "--mask-head", "shape")
    model = default_model_config(config, ("cat",), (1,))
    assert (model.name, model.mask_channels) == ("resnet18-conv-shape", 1)
    assert default_model_config(parse("a", "--mask-head", "none"), ("cat",), (1,)).name == "lite0-dcn-none"
    with pytest.raises(ValueError, match="mask_head must be one of"):
        TrainConfig(data=("a",), mask_head="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'lite0'"):
        default_model_config(parse("a", "--model", "lite0", "--neck", "conv"), ("cat",), (1,))


@pytest.mark.parametrize("scale", ["0,1", "1.3,0.6", "nan,1"])
def test_a_scale_that_is_no_range_exits_with_2(tmp_path, capsys: pytest.CaptureFixture[str], scale: str) -> None:
    assert main(["train", str(tmp_path), "--scale", scale, "--out", str(tmp_path / "out")]) == 2
    assert "scale must be low,high" in capsys.readouterr().err


def test_wrong_settings_and_missing_data_exit_with_2(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["train", str(tmp_path), "--size", "100", "--out", out]) == 2
    assert "size must be a multiple of 32" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "nowhere"), "--out", out, "--accelerator", "cpu"]) == 2
    assert "nowhere" in capsys.readouterr().err


GIVEN = (
    "--size", "96", "--batch-size", "3", "--epochs", "4", "--learning-rate", "0.02", "--warmup-steps", "7",
    "--freeze-stages", "1", "--patience", "6",
)  # fmt: skip
"""Each of the options that are chosen where they are missing."""


@pytest.fixture
def data(tmp_path) -> str:
    folder = tmp_path / "a"
    for split in ("train", "val"):
        coco_folder(folder, 6, [annotation(n, n) for n in (1, 2, 3)], split=split)
    return str(folder)


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(cuda=False, cores=2, memory=16 << 30)
    monkeypatch.setattr(Machine, "here", lambda accelerator="auto": machine)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return machine


def chosen_of(config: TrainConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in CHOSEN}


def test_what_is_chosen_reaches_the_trainer_and_is_said_before_it_starts(
    tmp_path, data: str, laptop: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[TrainConfig, str]] = []

    class Recorder:
        def __init__(self, config: TrainConfig, evaluate: object) -> None:
            trained.append((config, capsys.readouterr().out))

        def fit(self) -> None: ...

    monkeypatch.setattr(train_cli, "Trainer", Recorder)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert main(["train", data, "--out", str(tmp_path / "out"), "--seed", "5"]) == 0
    ((config, said),) = trained
    recipe = choose(DataFacts(6, 40.0, 0.62), laptop, eval_every=TrainConfig().eval_every)
    assert chosen_of(config) == recipe.settings()
    assert chosen_of(config) != chosen_of(TrainConfig())
    assert config.seed == 5
    assert f"--size {config.size} --batch-size {config.batch_size} --epochs {config.epochs}" in said
    assert all(reason in said for reason in recipe.reasons)
    assert "takes" in said
    assert "--no-auto" in said
    monkeypatch.setenv("RANK", "1")
    assert main(["train", data, "--out", str(tmp_path / "out")]) == 0
    assert trained[1] == (TrainConfig(**{**vars(config), "seed": 0}), ""), "one process of several speaks"


@pytest.mark.parametrize("count", range(len(CHOSEN) + 1))
def test_what_is_given_is_never_chosen(tmp_path, data: str, laptop: Machine, count: int) -> None:
    all_given = chosen_of(parse(data, *GIVEN))
    for start in range(len(CHOSEN)):
        names = [CHOSEN[(start + n) % len(CHOSEN)] for n in range(count)]
        at = [GIVEN.index("--" + name.replace("_", "-")) for name in names]
        arguments = [word for n in at for word in GIVEN[n : n + 2]]
        config, text = train_cli.configure([data, "--out", str(tmp_path / "out"), *arguments])
        for name in names:
            assert getattr(config, name) == all_given[name]
            assert f"--{name.replace('_', '-')} " not in text
        assert bool(text) == (count < len(CHOSEN))


def test_a_default_that_is_given_counts_as_given(tmp_path, data: str, laptop: Machine) -> None:
    size = str(TrainConfig().size)
    assert train_cli.configure([data, "--out", str(tmp_path / "out"), "--size", size])[0].size == TrainConfig().size


def test_resume_keeps_what_the_run_began_with(tmp_path, data: str, laptop: Machine) -> None:
    out = tmp_path / "out"
    began = {
        "size": 128, "batch_size": 2, "epochs": 9, "learning_rate": 0.003, "warmup_steps": 11, "freeze_stages": 1,
        "patience": 3, "seed": 4,
    }  # fmt: skip
    model = ModelConfig(class_names=("cat",), category_ids=(1,))
    save_checkpoint(out / "last.pt", Checkpoint(model, {}, {"settings": began}))
    config, text = train_cli.configure([data, "--out", str(out), "--resume", "--epochs", "12"])
    assert chosen_of(config) == {**{name: began[name] for name in CHOSEN}, "epochs": 12}
    assert config.seed == 0, "only what is chosen is taken over"
    assert "--size 128" in text
    assert "--epochs" not in text
    save_checkpoint(out / "last.pt", Checkpoint(model, {}, {}))
    config, text = train_cli.configure([data, "--out", str(out), "--resume"])
    assert (chosen_of(config), text) == (chosen_of(TrainConfig()), ""), "no run to go on from: the trainer says so"


def test_nothing_is_chosen_where_the_trainer_refuses(
    tmp_path, data: str, laptop: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "last.pt").write_bytes(b"a run")
    assert main(["train", data, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "holds a run already" in said.err
    assert "chosen" not in said.out
    assert main(["train", data, "--out", str(tmp_path / "none"), "--resume"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    empty = coco_folder(tmp_path / "empty", 0, [])
    assert main(["train", str(empty), "--out", str(tmp_path / "o"), "--val-split", "", "--accelerator", "cpu"]) == 2
    assert "no usable picture" in capsys.readouterr().err


def test_stages_are_frozen_only_where_they_have_learned_something(tmp_path, data: str, laptop: Machine) -> None:
    out = ["--out", str(tmp_path / "out")]
    for arguments, stages in (
        ([], 2),
        (["--no-pretrained"], 0),
        (["--no-pretrained", "--init-from", "some.pt"], 2),
        (["--model", "resnet18-conv-dynamic"], 0),  # which stages other backbones show is not known here
    ):
        assert train_cli.configure([data, *out, *arguments])[0].freeze_stages == stages, arguments
    assert train_cli.configure([data, *out, "--val-split", ""])[0].patience == 0


def test_a_larger_backbone_is_warned_about(tmp_path, data: str, laptop: Machine) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "resnet50 does not fit" in train_cli.configure([data, *out, "--model", "resnet50-conv-shape"])[1]
    assert "does not fit" not in train_cli.configure([data, *out])[1]
