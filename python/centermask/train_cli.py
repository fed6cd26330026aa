"""`centermask train`: a command line made from the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import types
import typing
from collections.abc import Sequence
from typing import Any

from centermask.training.evaluate import evaluate_model
from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig


def build_parser() -> argparse.ArgumentParser:
    """One option for each field, `data` as positional; the field's metadata holds its help."""
    parser = argparse.ArgumentParser(
        prog="centermask train",
        description="Trains on COCO-style folders, evaluates as it goes, writes OUT/best.pt and OUT/last.pt.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help=_help("data"), default=argparse.SUPPRESS)
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        if field.name != "data":
            add_option(parser, field.name, hints[field.name], field.default, _help(field.name))
    return parser


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


def run(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    values = vars(build_parser().parse_args(arguments))
    values["data"] = tuple(values["data"])
    config = TrainConfig(**values)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Trainer(config, evaluate_model).fit()
    return 0
