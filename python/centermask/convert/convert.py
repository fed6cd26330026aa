"""`centermask convert`: a published detector in, a checkpoint of ours out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from centermask.config import ModelConfig
from centermask.convert import centernet, centernet_better, mmdet
from centermask.convert.classes import classes_for
from centermask.convert.common import ConvertError, apply_plan, read_source
from centermask.training.checkpoint import Checkpoint, save_checkpoint

FAMILIES: dict[str, ModuleType] = {
    "centernet": centernet,
    "mmdet": mmdet,
    "centernet-better": centernet_better,
}


@dataclass(frozen=True)
class Converted:
    """What became of a file.

    Attributes:
        family: Key of `FAMILIES`.
        checkpoint: Ready to save, evaluate, export, or train on.
        notes: What the user should know.
    """

    family: str
    checkpoint: Checkpoint
    notes: tuple[str, ...]

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return self.checkpoint.config


def convert(
    source: str | os.PathLike[str],
    *,
    family: str | None = None,
    class_names: tuple[str, ...] = (),
    fixed_size: int | None = None,
) -> Converted:
    """Reads a detector of another project.

    Args:
        source: A PyTorch file.
        family: `centernet`, `mmdet` or `centernet-better`; None finds out.
        class_names: In the order of the heatmap; default COCO's for 80 classes, VOC's for 20.
        fixed_size: Scale pictures into a square of this many pixels, as CenterNet does unless told `--keep_res`; None
            leaves them at their own resolution, which the published figures were measured with.

    Raises:
        FileNotFoundError: There is no such file.
        ConvertError: It cannot be converted; the message says why.
        ValueError: The classes do not fit, or a setting is wrong.
    """
    weights = read_source(source)
    keys = list(weights)
    fitting = [name for name, module in FAMILIES.items() if module.recognises(keys)]
    if family is not None and family not in FAMILIES:
        raise ValueError(f"convert: family must be one of {', '.join(FAMILIES)}; got {family!r}")
    if not fitting or (family is not None and family not in fitting):
        looks = f"looks like {fitting[0]}" if fitting else f"is of none of the families {', '.join(FAMILIES)}"
        asked = f", not like {family}" if family and fitting else ""
        raise ConvertError(f"{source}: {looks}{asked}; its weights are called {', '.join(keys[:4])}, ...")
    family = family or fitting[0]
    module = FAMILIES[family]
    try:
        names, ids = classes_for(module.class_count(weights), class_names)
        plan = module.plan(weights, names, ids)
        config: ModelConfig = plan.config
        if fixed_size is not None:
            if fixed_size < 32 or fixed_size % 32:
                raise ValueError(f"the fixed size must be a multiple of 32, got {fixed_size}")
            config = replace(config, preprocess=replace(config.preprocess, policy="fixed_index", size=fixed_size))
        converted = apply_plan(replace(plan, config=config))
    except ConvertError as error:
        raise ConvertError(f"{source}: {error}") from error
    info = {"converted_from": family, "source": Path(source).name, "data": [_data_set(names)]}
    return Converted(family, Checkpoint(config, converted, {}, info), plan.notes)


def _data_set(names: tuple[str, ...]) -> str:
    return "COCO 2017" if names == classes_for(80)[0] else "unknown data of the converted model"


def convert_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    family: str | None = None,
    class_names: tuple[str, ...] = (),
    fixed_size: int | None = None,
) -> Converted:
    """Converts and writes; arguments and errors as of `convert`. Nothing is written if it fails."""
    result = convert(source, family=family, class_names=class_names, fixed_size=fixed_size)
    save_checkpoint(output, result.checkpoint)
    return result
