"""`centermask validate`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit code."""
    from centermask.files import make_room, write_atomically
    from centermask.validate.page import write_page
    from centermask.validate.run import validate

    for path in filter(None, (options.json, options.html)):
        make_room(path)
    if options.size < 32:
        raise ValueError(f"validate: size must be at least 32, got {options.size}")
    progress = ProgressBar() if sys.stderr.isatty() else None
    report = validate(Path(options.data), size=options.size, threads=options.threads, progress=progress)
    if progress is not None:
        progress.close()
    print(report.text())
    if options.json:
        write_atomically(options.json, (json.dumps(report.to_json(), indent=1) + "\n").encode())
        print(f"wrote {options.json}")
    if options.html:
        write_atomically(options.html, write_page(report).encode())
        print(f"wrote {options.html}")
    return report.exit_code


class ProgressBar:
    """A line on stderr, drawn at most ten times a second."""

    def __init__(self) -> None:
        self.start = self.drawn = time.monotonic()

    def __call__(self, split: str, done: int, total: int) -> None:
        """See `run.Progress`."""
        now = time.monotonic()
        if now - self.drawn < 0.1 and done < total:
            return
        self.drawn = now
        filled = 30 * done // max(total, 1)
        rate = done / max(now - self.start, 1e-3)
        left = (total - done) / max(rate, 1e-3)
        bar = "#" * filled + "." * (30 - filled)
        print(f"\r{split:<6} [{bar}] {done}/{total}, {left:.0f} s left   ", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the line."""
        print(file=sys.stderr)
