"""`centermask doctor`: what is installed, what it can do, and what is known to go wrong."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import cv2
import numpy as np

from centermask import __version__, ort
from centermask.predictor import embedded_models

_OPTIONAL = ("torch", "torchvision", "timm", "lightning", "pycocotools", "onnx", "onnxscript", "supervision")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def report() -> tuple[list[str], list[str]]:
    """Lines that describe this installation, and warnings."""
    lines = [
        f"centermask    {__version__}",
        f"python        {platform.python_version()} ({sys.executable})",
        f"platform      {platform.platform()}",
        f"numpy         {np.__version__}",
        f"opencv        {cv2.__version__}",
    ]
    warnings: list[str] = []
    try:
        from centermask import _core

        lines.append(f"instructions  {_core.isa_used()} (of {', '.join(_core.isa_available())})")
        lines += _build(_core.build_info(), _core.cuda_devices(), warnings)
    except ImportError as error:
        warnings.append(f"the compiled core does not load: {error}")
    lines += _onnxruntime(warnings)
    for package in _OPTIONAL:
        version = _version(package)
        lines.append(f"{package:<13} {version or 'not installed'}")
    lines.append(f"models        {', '.join(embedded_models()) or 'none embedded'}")
    if _version("opencv-python") and _version("opencv-python-headless"):
        warnings.append("opencv-python and opencv-python-headless are both installed and share their files; keep one")
    return lines, warnings


def _build(build: dict[str, Any], found: dict[str, Any], warnings: list[str]) -> list[str]:
    """How the core was compiled, and the GPUs that its CUDA half can use."""
    lines = [f"compiler      {build['compiler']}"]
    if not build["cuda"]:
        return [*lines, "cuda          no: built for the CPU alone (pip install . -Ccmake.define.CENTERMASK_CUDA=ON)"]
    driver = found["driver"]
    able = f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else "no driver"
    lines.append(f"cuda          {build['cuda']} for {', '.join(build['cuda_architectures'])}; {able}")
    for device in found["devices"]:
        capability = device["compute_capability"]
        memory = f"{device['memory_bytes'] / 2**30:.0f} GiB"
        lines.append(f"device cuda:{device['ordinal']} {device['name']}, sm_{capability}, {memory}")
        if not _has_code_for(capability, build["cuda_architectures"]):
            warnings.append(
                f"the core has no code for {device['name']} (sm_{capability}): build it again with "
                f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={capability}"
            )
    if not found["devices"]:
        lines.append(f"device        none: {found['problem']}")
    return lines


def _has_code_for(capability: int, architectures: Sequence[str]) -> bool:
    """Whether a card runs what was compiled: machine code of its own generation, or PTX of an older one.

    Args:
        capability: of the card: 86 for sm_86.
        architectures: as CMake's CUDA_ARCHITECTURES: 86-real is machine code, 86-virtual PTX, 86 is both.
    """
    for architecture in architectures:
        number, _, kind = architecture.partition("-")
        if not number.isdigit():
            return True  # native, all, 90a: whoever asked for it knows
        compiled = int(number)
        if kind != "virtual" and compiled // 10 == capability // 10 and compiled <= capability:
            return True
        if kind != "real" and compiled <= capability:
            return True
    return False


def _onnxruntime(warnings: list[str]) -> list[str]:
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(installed) == 2:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: uninstall both, then "
            "install one again"
        )
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        warnings.append(f"onnxruntime does not import ({error}): pip install 'centermask[cpu]' or 'centermask[gpu]'")
        return ["onnxruntime   not installed"]
    version = getattr(onnxruntime, "__version__", "unknown version")
    try:
        providers = ", ".join(onnxruntime.get_available_providers())
    except AttributeError:
        warnings.append("onnxruntime is broken: its files are incomplete; uninstall it and install it again")
        return [f"onnxruntime   {version}"]
    lines = [f"onnxruntime   {version} ({' and '.join(installed) or 'no package record'}): {providers}"]
    has_deform_conv = tuple(int(part) for part in version.split(".")[:2]) >= (1, 25)
    try:
        ort.register(onnxruntime.SessionOptions())
        lines.append(f"operators     {ort.library_path()}")
        if not has_deform_conv:
            lines.append("              models of the profile `standard` need onnxruntime 1.25 or newer, others run")
    except ort.LibraryError as error:
        lines.append("operators     none")
        slow = "run slower" if has_deform_conv else "do not run, unless their profile is `decomposed`"
        warnings.append(f"without our operators for onnxruntime models {slow}: {error}")
    return lines
