"""The options of `centermask train` are the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Literal

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")
pytest.importorskip("pycocotools")
pytest.importorskip("tqdm")

from centermask import train_cli
from centermask.cli import main
from centermask.training.objective import default_model_config
from centermask.training.settings import TrainConfig


def parse(*arguments: str) -> TrainConfig:
    values = vars(train_cli.build_parser().parse_args(arguments))
    values["data"] = tuple(values["data"])
    return TrainConfig(**values)


def test_defaults_are_those_of_the_dataclass() -> None:
    assert parse("a", "b") == TrainConfig(data=("a", "b"))


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
