"""Tables of the documents, written from the files in `benchmarks/results`, so that both say the same.

    python benchmarks/figures.py [--check]

A table stands in a document between `<!-- figures: NAME -->` and `<!-- end of figures -->`. With --check nothing is
written, and the exit code tells whether anything would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)

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
OLD_SETTINGS = {
    "shipped": "",
    "shipped-conv": "",
    "no-warm-up": "100 steps of warm-up",
    "no-clipping": "gradients clipped to a norm of 10",
    "one-sided-clamp": "a focal loss taken from logits",
    "one-sided-clamp-fp16": "the same, scores in float16",
    "offsets-at-full-rate": "a tenth of the rate for the offset convolutions",
    "shipped-no-lateral": "features of the backbone added in the neck",
    "random-offsets": "zero-initialised offset convolutions",
    "padding-0": "padding 1 in the neck (no laterals, boxes only)",
    "rate-of-batch-128": "the rate scaled to the batch of 8",
    "sgd-0.02": "AdamW at the scaled rate",
    "old": "all of it",
    "old-but-rate": "all but the rate",
    "old-but-offsets": "all but the random offsets",
    "old-but-padding": "all but the padding",
    "old-but-focal": "all but the clamp",
    "old-but-warmup": "all but the missing warm-up",
    "old-but-clip": "all but the missing clipping",
}


def rows(folder: Path) -> list[dict[str, Any]]:
    """All runs that a study has left in a folder, by name and seed."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-[0-9]*.json"))]


def grouped(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each change; `no-ema` is `base` as judged without the average of its weights."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault(row["name"], []).append(row)
        if row.get("raw"):
            groups.setdefault("no-ema", []).append({**row, "name": "no-ema", **row["raw"]})
    return groups


def mean_of(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean of a figure; a run that broke has 0."""
    return mean(row.get(key) or 0.0 for row in runs)


def cell(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean, and half the range where there are several runs."""
    values = [row[key] for row in runs if row.get(key) is not None]
    if not values:
        return "-"
    spread = f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def markdown(heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- ", "|---") for line in lines)


def ablation(folder: Path, times: Mapping[str, float] | None = None, least: Sequence[str] = ()) -> str:
    """The ablation's table: `base` first, then the best mask AP first.

    Args:
        folder: Where the runs are.
        times: Milliseconds of a prediction, by `<neck>-<mask head>`.
        least: Shown columns; none for all that have a figure.
    """
    found = grouped(rows(folder))
    told = {key for runs in found.values() for row in runs for key, value in row.items() if value is not None}
    shown = {key: title for key, title in COLUMNS.items() if key in told and (not least or key in least)}
    body = []
    for name, runs in sorted(found.items(), key=lambda item: (item[0] != "base", -mean_of(item[1], "mask_ap"))):
        ratio = mean_of(runs, "mask_ap") / max(mean_of(runs, "box_ap"), 1e-9)
        cells = [name, str(len(runs)), *(cell(runs, key) for key in shown), f"{ratio:.2f}"]
        cells.append(f"{runs[0]['parameters'] / 1e6:.2f} M")
        if times:
            settings = {"neck": "dcn", "mask_head": "dynamic", **runs[0]["change"]}
            cells.append(f"{times['-'.join((settings['neck'], settings['mask_head']))]:.1f} ms")
        body.append(cells)
    heading = ["change", "runs", *shown.values(), "mask/box", "parameters", *(["latency"] if times else [])]
    return markdown(heading, body)


def convergence(folder: Path) -> str:
    """Per case: in how many runs a value broke, AP, the loss at the end."""
    groups = grouped(rows(folder))
    good = [row["box_ap"] for row in groups.get("shipped", []) if row["broke_at"] is None]
    half = median(good) / 2 if good else 0.0
    names = [*(name for name in OLD_SETTINGS if name in groups), *sorted(groups.keys() - OLD_SETTINGS.keys())]
    body = []
    for name in names:
        runs = groups[name]
        whole = [row for row in runs if row["broke_at"] is None]
        stalled = sum((row["box_ap"] or 0.0) < half for row in whole)
        verdicts = [f"{stalled} of {len(runs)} stalled"] * bool(stalled)
        verdicts += [f"{len(runs) - len(whole)} of {len(runs)} not finite"] * (len(whole) < len(runs))
        ends = [median(row["course"]["heatmap"][-10:]) for row in whole]
        end = f"{median(ends):.2f}" if ends else "-"
        figures = [cell(whole, "mask_ap"), cell(whole, "box_ap"), end]
        body.append([name, OLD_SETTINGS.get(name, ""), str(len(runs)), *figures, "; ".join(verdicts)])
    return markdown(["case", "in place of", "runs", "mask AP", "box AP", "heatmap loss at the end", ""], body)


def diverged(found: Sequence[Mapping[str, Any]], key: str = "mask_ap") -> list[str]:
    """Which of several runs of one recipe ended in NaN, or below half of their median."""
    broken = [row.get("diverged") or row.get("broke_at") is not None for row in found]
    middle = median(row.get(key) or 0.0 for row in found)
    low = [(row.get(key) or 0.0) < middle / 2 for row in found]
    return [f"{row['name']}-{row['seed']}" for row, b, few in zip(found, broken, low, strict=True) if b or few]


def divergences() -> str:
    """How many runs of the shipped recipe there are, and how many of them diverged."""
    kinds = {
        "ablation, animals": ("ablation/animals", "repeats/animals", ("base", "conv")),
        "ablation, nuclei": ("ablation/nuclei", "repeats/nuclei", ("base", "conv")),
        "old settings (without mosaic and average)": (
            "convergence",
            "repeats/convergence",
            ("shipped", "shipped-conv"),
        ),
    }
    body, total, bad = [], 0, 0
    for title, (study, repeats, names) in kinds.items():
        groups = grouped([*rows(RESULTS / study), *rows(RESULTS / repeats)])
        for name, neck in zip(names, ("dcn", "conv"), strict=True):
            runs = groups.get(name, [])
            if runs:
                values = ", ".join(f"{row.get('mask_ap') or 0.0:.3f}" for row in runs)
                body.append([title, neck, str(len(runs)), values, str(len(diverged(runs)))])
                total, bad = total + len(runs), bad + len(diverged(runs))
    body.append(["**all**", "", f"**{total}**", "", f"**{bad}**"])
    return markdown(["study", "neck", "runs", "mask AP of each", "diverged"], body)


def box_margin() -> str:
    """Mask AP of the ablation's checkpoints with other values of `box_margin`."""
    found = json.loads((RESULTS / "box_margin.json").read_text())
    margins = list(next(iter(found.values())))
    body = [[name, *(f"{values[margin]['mask_ap']:.3f}" for margin in margins)] for name, values in found.items()]
    return markdown(["mask AP with `box_margin`", *margins], body)


def train_step() -> str:
    """Training steps on a CPU."""
    body = []
    for row in json.loads((RESULTS / "train_step.json").read_text()):
        times = [f"{1e3 * row['median_s'][name]:.0f} ms" for name in ("dcn", "conv", "torchvision-dcn")]
        ratios = [f"{row['ratio']['torchvision/dcn']:.2f}", f"{row['ratio']['dcn/conv']:.2f}"]
        each = f"{row['pictures_per_s']['dcn']:.1f}"
        body.append([str(row["threads"]), str(row["batch_size"]), *times, *ratios, each])
    heading = ["threads", "batch", "`dcn`", "`conv`", "torchvision's DCN"]
    return markdown([*heading, "torchvision / dcn", "dcn / conv", "pictures a second (`dcn`)"], body)


def loader() -> str:
    """Pictures a second that one core makes, and how long the model waits."""
    body = []
    for row in json.loads((RESULTS / "loader.json").read_text()):
        rates = [f"{row['pictures_per_s_a_core'][kind]:.0f}" for kind in ("plain", "mosaic", "mosaic+copy-paste")]
        waits = [f"{100 * share:.1f} %" for share in row["wait_share"].values()]
        body.append([row["data"], str(row["size"]), *rates, *waits])
    workers = [f"waits, {n} worker{'s' * (n != '1')}" for n in row["wait_share"]]
    return markdown(["data", "size", "plain", "mosaic 0.5", "mosaic 0.5, copy-paste 0.5", *workers], body)


def latencies(preset: str) -> dict[str, float] | None:
    """What `latency.py` measured, in ms; None where it was not run."""
    path = RESULTS / "latency.json"
    if not path.exists():
        return None
    return {name: values["median_ms"] for name, values in json.loads(path.read_text())[preset].items()}


TABLES: dict[str, Callable[[], str]] = {
    "convergence": lambda: convergence(RESULTS / "convergence"),
    "ablation-animals": lambda: ablation(RESULTS / "ablation" / "animals", latencies("animals")),
    "ablation-nuclei": lambda: ablation(RESULTS / "ablation" / "nuclei", latencies("nuclei")),
    "ablation-earlier": lambda: ablation(
        RESULTS / "ablation" / "earlier", None, ("mask_ap", "mask_ap50", "mask_ap75", "box_ap", "box_ap50")
    ),
    "divergences": divergences,
    "box-margin": box_margin,
    "train-step": train_step,
    "loader": loader,
}


def renewed(text: str) -> str:
    """A document with its tables as the files have them."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is not up to date")
    arguments = parser.parse_args()
    stale = []
    for path in sorted(ROOT.glob("docs/*.md")):
        old = path.read_text()
        new = renewed(old)
        if new != old:
            stale.append(path.name)
            if not arguments.check:
                path.write_text(new)
    print("\n".join(f"{name}: {'not up to date' if arguments.check else 'written'}" for name in stale) or "up to date")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
