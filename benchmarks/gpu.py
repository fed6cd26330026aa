"""Times the CUDA kernels beside their peers on one GPU, one call of each in turn.

    python benchmarks/gpu.py --out results/            (about three minutes)
    python benchmarks/gpu.py --out results/ --quick    (under one)

Medians in milliseconds, warm, by CUDA events. Each row has two columns. `call` is the call from Python, one after
another as a program makes them. `graph` are replays of a CUDA graph of a few calls, which have no launch overhead; for
torchvision, which cannot be captured, `kernels` stands in its place: the time of its kernels alone, by the profiler.
The inputs of consecutive calls differ, so that the L2 cache does not hold them. Peers: torchvision's deform_conv2d in
the same dtype; cuDNN's ordinary convolution of the same shape, channels-last; PyTorch's max_pool2d + topk. The goals
are judged without launch overhead; the ratios of the calls are given beside them. Writes gpu.json, and gpu.md with the
table that is printed last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from gpu_report import add_goals, best, detail
from gpu_timer import Call, Timer
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from centermask import _core, ops
from centermask.nn import deform_conv2d

# channels in, channels out, height = width; 3x3, padding 1
SHAPES = [(2048, 256, 16), (256, 128, 32), (128, 64, 64), (512, 256, 16), (64, 64, 128)]
CUDA = torch.device("cuda")

WANTED_INPUT_BYTES = 160 << 20  # of all input sets together: three times the L2 cache of the largest cards


def sets_of(one_set_bytes: int) -> int:
    return max(2, min(16, -(-WANTED_INPUT_BYTES // max(one_set_bytes, 1))))


def inputs(batch: int, c: int, out: int, size: int, dtype: torch.dtype, seed: int, channels_last: bool) -> Any:
    """x, weight, offset, mask, grad_output; offsets from N(0, 2), masks from U(0, 1), both of x's dtype."""
    generator = torch.Generator(CUDA).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=CUDA)

    x = normal(batch, c, size, size).to(dtype)
    weight = (normal(out, c, 3, 3) / (3 * c**0.5)).to(dtype)
    offset = (normal(batch, 18, size, size) * 2).to(dtype)
    mask = torch.rand(batch, 9, size, size, generator=generator, device=CUDA).to(dtype)
    grad = normal(batch, out, size, size).to(dtype)
    if channels_last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    return x, weight, offset, mask, grad


PAIR = (1, 1)


def raw_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor, mask: Any) -> Any:
    return torch.ops.centermask.deform_conv2d_backward(
        grad, x, weight, offset, mask, PAIR, PAIR, PAIR, 1, [True, True, True, True, False]
    )


def torchvision_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, offset: Any, mask: Any) -> Any:
    # The operator itself, as for ours: neither goes through autograd.
    bias = torch.zeros(weight.shape[0], dtype=x.dtype, device=x.device)
    return torch.ops.torchvision._deform_conv2d_backward(
        grad, x, weight, offset, mask, bias, 1, 1, 1, 1, 1, 1, 1, 1, True
    )


def bench_deform(timer: Timer, batch: int, dtype: torch.dtype, shape: tuple[int, int, int], backward: bool) -> Any:
    c, out, size = shape
    width = torch.finfo(dtype).bits // 8
    set_bytes = width * (batch * size * size * (c + 27 + out) + 9 * c * out)
    count = sets_of(set_bytes) if batch > 1 else 8
    nhwc = [inputs(batch, c, out, size, dtype, seed, True) for seed in range(count)]
    nchw = [tuple(t.contiguous() for t in one) for one in nhwc]

    def each(sets: list[Any], function: Callable[..., Any]) -> list[Call]:
        return [lambda one=one: function(*one) for one in sets]

    def ours(x: Any, weight: Any, offset: Any, mask: Any, grad: Any) -> Any:
        return deform_conv2d(x, weight, offset, mask, padding=1)

    def peer(x: Any, weight: Any, offset: Any, mask: Any, grad: Any) -> Any:
        return torchvision_deform_conv2d(x, offset, weight, None, 1, 1, 1, mask)

    calls = {"ours": each(nhwc, ours), "ours_nchw": each(nchw, ours), "torchvision": each(nchw, peer)}
    if dtype == torch.float32:
        calls["ours_tf32"] = each(nhwc, tf32(ours))
    if backward:
        calls["ours_backward"] = each(nhwc, lambda x, w, o, m, g: raw_backward(g, x, w, o, m))
        calls["torchvision_backward"] = each(nchw, lambda x, w, o, m, g: torchvision_backward(g, x, w, o, m))
        if dtype == torch.float32:
            calls["ours_tf32_backward"] = each(nhwc, tf32(lambda x, w, o, m, g: raw_backward(g, x, w, o, m)))
    weights = [one[1].contiguous(memory_format=torch.channels_last) for one in nhwc]
    calls["dense"] = [
        lambda x=one[0], w=weight: functional.conv2d(x, w, padding=1) for one, weight in zip(nhwc, weights, strict=True)
    ]
    with torch.no_grad():
        return timer.measure(calls)


def tf32(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        torch.backends.cudnn.allow_tf32 = True
        try:
            return function(*args)
        finally:
            torch.backends.cudnn.allow_tf32 = False

    return run


def torch_decode(heatmap: torch.Tensor) -> Any:
    """What CenterNet's decoders do: a pooled comparison, then two rounds of topk."""
    n, classes = heatmap.shape[:2]
    scores = heatmap.sigmoid()
    peaks = scores * (functional.max_pool2d(scores, 3, 1, 1) == scores)
    values, cells = peaks.view(n, classes, -1).topk(100)
    values, places = values.view(n, -1).topk(100)
    return values, places // 100, cells.view(n, -1).gather(1, places)


def bench_decode(timer: Timer, batch: int, dtype: torch.dtype) -> Any:
    generator = torch.Generator(CUDA).manual_seed(0)
    count = sets_of(batch * 80 * 128 * 128 * torch.finfo(dtype).bits // 8)
    maps = [torch.randn(batch, 80, 128, 128, generator=generator, device=CUDA).mul_(2).sub_(4) for _ in range(count)]
    maps = [one.to(dtype) for one in maps]
    centers = ops.decode_centers(maps[0], 100)
    expected = ops.decode_centers(maps[0].float().cpu(), 100)
    same = all(
        np.array_equal(getattr(centers, name).cpu().numpy(), getattr(expected, name))
        for name in ("labels", "index", "count")
    )
    calls = {
        "ours": [lambda one=one: ops.decode_centers(one, 100) for one in maps],
        "torch": [lambda one=one: torch_decode(one) for one in maps],
    }
    return {**timer.measure(calls), "same_order_as_cpu": same}


def mask_case(seed: int) -> tuple[Any, ...]:
    """100 people-sized `dynamic` masks at 1920 x 1080: boxes of 3 Mpixel together, of blobs and not noise."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((8, 17, 30)).astype(np.float32)
    features = functional.interpolate(torch.from_numpy(features)[None], (136, 240), mode="bicubic")[0]
    params = torch.from_numpy(rng.normal(0, 0.5, (100, 169)).astype(np.float32))
    size = rng.uniform(60, 285, (100, 2))
    corner = rng.uniform(0, 1, (100, 2)) * (np.array([960, 540]) - size / 2)
    boxes = torch.from_numpy(np.concatenate([corner, corner + size / 2], 1).astype(np.float32))
    return features.to(CUDA), params.to(CUDA), boxes.to(CUDA)


def bench_masks(timer: Timer) -> Any:
    cases = [mask_case(seed) for seed in range(8)]
    matrix = [0.5, 0.0, 0.0, 0.0, 0.5, 0.0]
    settings = ("dynamic", 1080, 1920, matrix, 4, 0.0, 0.1)
    runs = torch.empty(100 * (2 * 1920 + 16), dtype=torch.uint32, device=CUDA)
    offsets = torch.empty(101, dtype=torch.int64, device=CUDA)
    packed = torch.empty((100, 1080, 240), dtype=torch.uint8, device=CUDA)
    capsule = torch.utils.dlpack.to_dlpack

    def allocate(size: int) -> tuple[int, torch.Tensor]:
        memory = torch.empty(size, dtype=torch.uint8, device=CUDA)
        return memory.data_ptr(), memory

    def to_runs(case: Any) -> None:
        _core.assemble_masks_cuda(
            *map(capsule, case), None, *settings, capsule(runs), capsule(offsets), allocate,
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def to_bitmaps(case: Any) -> None:
        _core.assemble_bitmaps_cuda(
            *map(capsule, case), None, *settings, capsule(packed), torch.cuda.current_stream().cuda_stream
        )

    result = timer.measure(
        {
            "runs_on_device": [lambda case=case: to_runs(case) for case in cases],
            "packed_bitmaps": [lambda case=case: to_bitmaps(case) for case in cases],
        }
    )
    transform = np.array(matrix).reshape(2, 3)

    def to_dictionaries(case: Any) -> Any:
        return ops.assemble_masks(*case, image_size=(1080, 1920), image_to_input=transform)

    eager = timer.in_turn({"dictionaries": lambda: len([to_dictionaries(case) for case in cases])})
    result["dictionaries"] = {"call": eager["dictionaries"]}
    expected = ops.assemble_masks(*(t.cpu() for t in cases[0]), image_size=(1080, 1920), image_to_input=transform)
    actual = to_dictionaries(cases[0])
    area = sum(map(int, ops.rle_area(expected)))
    differing = sum(int((ops.rle_decode(a) != ops.rle_decode(b)).sum()) for a, b in zip(actual, expected, strict=True))
    mega = float((cases[0][2][:, 2:] - cases[0][2][:, :2]).prod(1).sum()) * 4 / 1e6
    return {**result, "box_megapixels": mega, "mask_pixels": area, "pixels_unlike_cpu": differing}


def bench_rest(timer: Timer) -> Any:
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)).to(CUDA) for _ in range(8)]
    outs = [torch.empty((3, 320, 512), device=CUDA) for _ in images]
    matrix = np.array([[512 / 1920, 0, 0], [0, 512 / 1920, 16]])
    scale = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}
    features = [torch.randn(16, 64, 128, 128, device=CUDA) for _ in range(4)]
    index = torch.randint(0, 128 * 128, (16, 100), device=CUDA)
    return timer.measure(
        {
            "preprocess_1080p_to_320x512": [
                lambda image=image, out=out: ops.preprocess(image, matrix, (320, 512), out=out, **scale)
                for image, out in zip(images, outs, strict=True)
            ],
            "gather_patches_16x64x128x128_K100": [lambda one=one: ops.gather_patches(one, index) for one in features],
        }
    )


def accuracy() -> dict[str, float]:
    """Errors of the output and the gradients against float64 on the CPU: norms, relative to the norm of each."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reference = [normal(2, 64, 24, 20), normal(48, 64, 3, 3) / 24, normal(2, 18, 24, 20) * 2, normal(2, 9, 24, 20)]
    grad = normal(2, 48, 24, 20)
    result = {}
    for name, dtype, allow in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, False),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cudnn.allow_tf32 = allow
        rounded = [t.to(torch.float32 if i >= 2 else dtype) for i, t in enumerate(reference)]
        rounded_grad = grad.to(dtype)
        x, weight, offset, mask = (t.double() for t in rounded)
        expected = ops.deform_conv2d(x, weight, offset, mask, padding=1)
        gradients = ops.deform_conv2d_backward(rounded_grad.double(), x, weight, offset, mask, padding=1)
        device = [t.to(CUDA) for t in rounded]
        actual = [deform_conv2d(*device, padding=1), *raw_backward(rounded_grad.to(CUDA), *device)[:4]]
        parts = ("output", "x", "weight", "offset", "mask")
        for part, value, exact in zip(parts, actual, [expected, *gradients[:4]], strict=True):
            wanted = torch.from_numpy(exact)
            result[f"{name} {part}"] = float((value.cpu().double() - wanted).norm() / wanted.norm())
        torch.backends.cudnn.allow_tf32 = False
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repeats: under a minute")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    timer = Timer(0.08 if arguments.quick else 0.6)
    properties = torch.cuda.get_device_properties(CUDA)
    results: dict[str, Any] = {
        "device": properties.name,
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "centermask": _core.__version__},
        "deform_conv2d": [],
        "decode_centers": [],
        "errors": {},
    }

    def attempt(name: str, function: Callable[[], Any]) -> Any:
        """One part's failure must not cost the figures of the others."""
        try:
            value = function()
        except Exception as error:
            results["errors"][name] = f"{type(error).__name__}: {error}"
            print(f"{name} FAILED: {error}", flush=True)
            return None
        torch.cuda.empty_cache()
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=1))
        return value

    results["accuracy"] = attempt("accuracy", accuracy) or {f"{name} failed": 1.0 for name in ("fp32", "tf32", "fp16")}
    for batch in (1, 16):
        for dtype in (torch.float32, torch.float16):
            row = attempt(f"decode {batch} {dtype}", lambda b=batch, d=dtype: bench_decode(timer, b, d))
            if row:
                results["decode_centers"].append({"batch": batch, "dtype": str(dtype).removeprefix("torch."), **row})
    results["assemble_masks"] = attempt("masks", lambda: bench_masks(timer)) or {}
    results["rest"] = attempt("rest", lambda: bench_rest(timer)) or {}
    for dtype in (torch.float16, torch.float32):
        for batch in (16, 1):
            for shape in SHAPES[1:4] if arguments.quick else SHAPES:
                name = f"{dtype} {batch} {shape}"
                # torchvision's backward takes long: once for each dtype suffices.
                row = attempt(name, lambda b=batch, d=dtype, s=shape: bench_deform(timer, b, d, s, b == 16))
                if row:
                    entry = {"batch": batch, "dtype": str(dtype).removeprefix("torch."), "shape": shape, **row}
                    results["deform_conv2d"].append(entry)
                    print(name, {k: round(1e3 * best(v), 1) for k, v in row.items()}, flush=True)
    rows = add_goals(results)
    results["goals"] = rows
    lines = [
        f"{properties.name}, torch {torch.__version__}",
        "",
        "| what | goal | measured | reached |",
        "|---|---|---|---|",
    ]
    lines += [f"| {what} | {goal} | {value} | {'yes' if reached else 'NO'} |" for what, goal, value, reached in rows]
    lines += detail(results)
    (arguments.out / "gpu.json").write_text(json.dumps(results, indent=1))
    (arguments.out / "gpu.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    if results["errors"]:
        raise SystemExit(f"failed: {results['errors']}")


if __name__ == "__main__":
    main()
