"""`centermask train`: a command line made from the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import threading
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from centermask.coco import require_evaluation
from centermask.training.checkpoint import load_checkpoint
from centermask.training.evaluate import evaluate_model
from centermask.training.loop import Trainer
from centermask.training.recipe import CHOSEN, DataFacts, Machine, choose
from centermask.training.settings import TrainConfig
from centermask.training.val_split import must_be_made


def build_parser() -> argparse.ArgumentParser:
    """One option for each field, `data` as positional; the field's metadata holds its help.

    Those of `CHOSEN` are in the result only where they were given, and so is `auto`.
    """
    parser = argparse.ArgumentParser(
        prog="centermask train",
        description="Trains on COCO-style folders, evaluates as it goes, writes OUT/best.pt and OUT/last.pt.",
        formatter_class=_Help,
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help=_help("data"), default=argparse.SUPPRESS)
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        if field.name in CHOSEN:
            text = f"{_help(field.name)} (default: chosen; {field.default} with --no-auto)"
            add_option(parser, field.name, hints[field.name], argparse.SUPPRESS, text)
        elif field.name != "data":
            add_option(parser, field.name, hints[field.name], field.default, _help(field.name))
    options = ", ".join("--" + name.replace("_", "-") for name in CHOSEN)
    text = f"choose what is not given of {options} by the data and the machine (default; --resume keeps the saved ones)"
    parser.add_argument("--auto", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults but for those that say nothing: None, and empty text or lists."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", ()) else super()._get_help_string(action)


def _help(name: str) -> str:
    field = next(field for field in dataclasses.fields(TrainConfig) if field.name == name)
    return str(field.metadata.get("help", "")).replace("%", "%%") or " "


def add_option(parser: argparse.ArgumentParser, name: str, hint: Any, default: Any, text: str) -> None:
    """Adds `--name` of the type that a dataclass field declares.

    Args:
        parser: Where to.
        name: Of the field; underscores become dashes.
        hint: bool (then `--name` and `--no-name`), int, float, str, Literal, `X | None`, or a tuple (comma-separated).
        default: Shown in the help.
        text: The help.

    Raises:
        TypeError: The type is none of these.
    """
    flag = "--" + name.replace("_", "-")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (argument for argument in arguments if argument is not type(None))
        add_option(parser, name, hint, default, text)
    elif hint is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
    elif origin is typing.Literal:
        parser.add_argument(flag, choices=arguments, default=default, help=text)
    elif origin is tuple:
        fixed = None if arguments[-1] is Ellipsis else len(arguments)
        parser.add_argument(flag, type=_comma_separated(arguments[0], fixed), default=default, metavar="A,B", help=text)
    elif hint in (int, float, str):
        parser.add_argument(flag, type=hint, default=default, metavar=hint.__name__.upper(), help=text)
    else:
        raise TypeError(f"train: the field {name!r} has a type that the command line cannot take: {hint}")


def _comma_separated(element: type, count: int | None) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        values = tuple(element(part.strip()) for part in text.split(",")) if text else ()
        if count is not None and len(values) != count:
            raise argparse.ArgumentTypeError(f"expected {count} values separated by commas, got {text!r}")
        return values

    parse.__name__ = "comma-separated list"  # argparse names it in its errors
    return parse


def configure(arguments: Sequence[str]) -> tuple[TrainConfig, str]:
    """The settings of a command line, those chosen that it does not give, and what to tell about these.

    Raises:
        ValueError: Settings or data do not fit.
        FileNotFoundError: There is no run to resume.
    """
    values = vars(build_parser().parse_args(arguments))
    values["data"] = tuple(values["data"])
    auto = values.pop("auto", True)
    config = TrainConfig(**values)
    given = {name: values[name] for name in CHOSEN if name in values}
    if len(given) == len(CHOSEN):
        return config, ""
    last = Path(config.out) / "last.pt"
    if config.resume:
        saved = load_checkpoint(last).training.get("settings", {})
        kept = {name: saved[name] for name in CHOSEN if name in saved and name not in given}
        text = "going on with " + " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in kept.items())
        return dataclasses.replace(config, **kept), text if kept else ""
    if not auto or last.exists():  # which the trainer refuses
        return config, ""
    return _chosen(config, given)


def _chosen(config: TrainConfig, given: Mapping[str, Any]) -> tuple[TrainConfig, str]:
    folders = [Path(path) for path in config.data]
    make_val = must_be_made(folders, config.val_split)
    facts = DataFacts.read(folders, classes=config.classes, make_val=make_val)
    if not facts.pictures:  # the trainer tells why
        return config, ""
    processes = int(os.environ.get("WORLD_SIZE", config.devices))
    backbone = config.model.split("-")[0]
    recipe = choose(
        facts,
        Machine.here(config.accelerator),
        given=given,
        processes=processes,
        eval_every=config.eval_every if config.val_split else 0,
        freezable=backbone == "lite0" and (config.pretrained or bool(config.init_from)),
    )
    text = recipe.text() + ", or --no-auto for fixed defaults"
    if backbone != "lite0":
        text += f"\ntime and memory are known for lite0; if {backbone} does not fit, give a smaller --batch-size"
    return dataclasses.replace(config, **recipe.settings()), text


def run(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config, text = configure(arguments)
    if config.val_split:
        require_evaluation()
    if text and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(text, flush=True)
    trainer = Trainer(config, evaluate_model)
    with _interruptible(trainer):
        trainer.fit()
    return 0


@contextlib.contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C lets the step end and saves it; a second one ends at once."""

    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread alone
        return

    def interrupt(_number: int, _frame: types.FrameType | None) -> None:
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
