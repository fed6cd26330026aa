"""The tables of benchmarks/gpu.py."""

from __future__ import annotations

import statistics
from typing import Any


def best(row: dict[str, float]) -> float:
    """Milliseconds without launch overhead, where that is known."""
    return row.get("graph", row.get("kernels", row["call"]))


def add_goals(results: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Rows of (what, goal, measured, reached)."""
    rows = []

    def add(what: str, dtype: str, above: str, below: str, goal: float) -> None:
        own = [r for r in results["deform_conv2d"] if r["batch"] == 16 and r["dtype"] == dtype]
        if not own:
            return
        values = [best(r[above]) / best(r[below]) for r in own]
        mean = statistics.geometric_mean(values)
        calls = statistics.geometric_mean(r[above]["call"] / r[below]["call"] for r in own)
        text = f"{mean:.3f} (each: {', '.join(f'{v:.3f}' for v in values)}; calls: {calls:.3f})"
        rows.append((what, f"<= {goal:.3f}", text, mean <= goal))

    half, single = "float16", "float32"
    add("DCN forward fp16 / torchvision fp16, batch 16", half, "ours", "torchvision", 1 / 5)
    add("DCN forward fp16 NCHW / torchvision fp16, batch 16", half, "ours_nchw", "torchvision", 1 / 5)
    add("DCN forward fp16 / cuDNN dense fp16, batch 16", half, "ours", "dense", 2.0)
    add("DCN forward fp32 / torchvision fp32, batch 16", single, "ours", "torchvision", 1 / 3)
    add("DCN forward tf32 / torchvision fp32, batch 16", single, "ours_tf32", "torchvision", 1 / 3)
    add("DCN backward fp16 / torchvision fp16, batch 16", half, "ours_backward", "torchvision_backward", 1 / 4)
    for row in results["decode_centers"]:
        if row["dtype"] == single:
            goal = 60 if row["batch"] == 1 else 250
            micro = 1e3 * best(row["ours"])
            order = "CPU's order" if row["same_order_as_cpu"] else "ORDER DIFFERS FROM THE CPU"
            what = f"decode 80x128x128, batch {row['batch']}"
            peer = f"{micro:.1f} us, {order} (torch: {1e3 * best(row['torch']):.0f} us)"
            rows.append((what, f"<= {goal} us", peer, micro <= goal and row["same_order_as_cpu"]))
    masks = results.get("assemble_masks")
    if masks:
        value = best(masks["runs_on_device"])
        text = f"{value:.3f} ms, {masks['pixels_unlike_cpu']} of {masks['mask_pixels']} pixels unlike the CPU"
        rows.append(("100 dynamic masks at 1080p to RLE on the device", "<= 0.5 ms", text, value <= 0.5))
    for name, goal in (("fp32", 1e-5), ("tf32", 1e-3), ("fp16", 3e-3)):
        errors = {k: v for k, v in results["accuracy"].items() if k.startswith(name)}
        text = ", ".join(f"{k.split()[1]} {v:.1e}" for k, v in errors.items())
        rows.append((f"{name} against CPU float64", f"<= {goal:.0e}", text, max(errors.values()) <= goal))
    return rows


def detail(results: dict[str, Any]) -> list[str]:
    """Every time of deform_conv2d, in microseconds: graph, or kernels of torchvision (call)."""
    names = ["ours", "ours_nchw", "ours_tf32", "dense", "torchvision"]
    names += ["ours_backward", "ours_tf32_backward", "torchvision_backward"]
    lines = ["", "| us: graph (call) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in results["deform_conv2d"]:
        c, out, size = row["shape"]
        cells = [
            f"{1e3 * best(row[name]):.0f} ({1e3 * row[name]['call']:.0f})" if name in row else "" for name in names
        ]
        lines.append(f"| {row['dtype']} {row['batch']}x{c}->{out} @{size} | " + " | ".join(cells) + " |")
    lines += ["", "| us | graph (call) |", "|---|---|"]
    for op in ("assemble_masks", "rest"):
        for name, row in results.get(op, {}).items():
            if isinstance(row, dict):
                lines.append(f"| {name} | {1e3 * best(row):.1f} ({1e3 * row['call']:.1f}) |")
    return lines
