"""`centermask doctor`: what is installed, what it can do, and what is known to go wrong."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import cv2
import numpy as np

from centermask import __version__
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
    warnings = []
    try:
        from centermask import _core

        lines.append(f"instructions  {_core.isa_used()} (of {', '.join(_core.isa_available())})")
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
    if tuple(int(part) for part in version.split(".")[:2]) < (1, 25):
        warnings.append(f"onnxruntime {version} has no DeformConv: models of the profile `standard` need 1.25 or newer")
    return [f"onnxruntime   {version} ({' and '.join(installed) or 'no package record'}): {providers}"]
