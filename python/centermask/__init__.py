"""Instance segmentation of the CenterNet line: `Predictor`, the `ops` underneath, `nn` and `training` for PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from centermask.instances import Instances
    from centermask.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Instances", "Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import centermask` stays quick and asks for nothing that is not used.
    if name == "Predictor":
        from centermask.predictor import Predictor

        return Predictor
    if name == "Instances":
        from centermask.instances import Instances

        return Instances
    raise AttributeError(f"module 'centermask' has no attribute {name!r}")
