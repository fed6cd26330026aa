"""`centermask convert`."""

from __future__ import annotations

import argparse

from centermask.convert.convert import convert_file
from centermask.files import make_room


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit code."""
    make_room(options.output)
    result = convert_file(
        options.source,
        options.output,
        family=options.family,
        class_names=tuple(name.strip() for name in options.classes.split(",")) if options.classes else (),
        fixed_size=options.fixed_size,
    )
    config = result.config
    print(f"{options.source}: {result.family}, {config.name}, {len(config.class_names)} classes")
    print(f"wrote {options.output}: {len(result.checkpoint.model)} tensors; boxes only, no masks")
    for note in result.notes:
        print(f"note: {note}")
    return 0
