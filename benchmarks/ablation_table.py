"""The ablation's table, from the files that its runs left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from study import diverged, rows

COLUMNS = {
    "mask_ap": "mask AP",
    "mask_ap50": "AP50",
    "mask_ap75": "AP75",
    "mask_ap_small": "small",
    "mask_ap_medium": "medium",
    "mask_ap_large": "large",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
}


def grouped(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The runs of each change, `base` first, then the best mask AP first; with `no-ema` among them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(out):
        found.setdefault(row["name"], []).append(row)
        if row.get("raw"):
            found.setdefault("no-ema", []).append({**row, "name": "no-ema", **row["raw"]})
    return dict(sorted(found.items(), key=lambda item: (item[0] != "base", -_mean(item[1], "mask_ap"))))


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return mean(row[key] or 0.0 for row in runs)


def cell(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean, and half the range where there are several."""
    values = [row[key] for row in runs if row.get(key) is not None]
    if not values:
        return "-"
    spread = f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def table(out: Path, latency: Path | None = None) -> str:
    """Markdown.

    Args:
        out: Where the runs are.
        latency: What `latency.py` wrote; a column of it is added.
    """
    found = grouped(out)
    times = json.loads(latency.read_text())["architectures"] if latency and latency.exists() else {}
    sizes = {key: title for key, title in COLUMNS.items() if any(r.get(key) is not None for r in sum(found.values(), []))}
    heading = ["change", "runs", *sizes.values(), "mask/box", "parameters", *(["latency"] if times else [])]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for name, runs in found.items():
        ratio = _mean(runs, "mask_ap") / max(_mean(runs, "box_ap"), 1e-9)
        cells = [name, str(len(runs)), *(cell(runs, key) for key in sizes), f"{ratio:.2f}"]
        cells.append(f"{runs[0]['parameters'] / 1e6:.2f} M")
        if times:
            settings = {"neck": "dcn", "mask_head": "dynamic", **runs[0]["change"]}
            cells.append(f"{times['-'.join((settings['neck'], settings['mask_head']))]['median_ms']:.1f} ms")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def divergences(out: Path, names: Sequence[str] = ("base", "conv")) -> tuple[int, list[str]]:
    """Of the shipped recipe: number of runs, and those that ended in NaN or below half of their median."""
    found = grouped(out)
    runs = [found[name] for name in names if name in found]
    return sum(map(len, runs)), [label for some in runs for label in diverged(some)]
