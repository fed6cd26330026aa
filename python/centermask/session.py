"""An ONNX file of ours, run by ONNX Runtime. The only module that knows that runtime."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from centermask import ort
from centermask.metadata import ModelFileError, ModelInfo

_log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]

INSTALL_ADVICE = (
    "onnxruntime is needed to run a model. Install one of:\n"
    "  pip install 'centermask[cpu]'    (onnxruntime, for the CPU)\n"
    "  pip install 'centermask[gpu]'    (onnxruntime-gpu, for NVIDIA GPUs)\n"
    "Not both: they overwrite each other."
)


class NetworkOutput(NamedTuple):
    """What a network gives for a batch of N, K rows each, ordered by score; rows after `count` are empty.

    Attributes:
        boxes: float32 `[N, K, 4]`, xyxy in input pixels, not clipped.
        scores: float32 `[N, K]`, 0..1.
        labels: int64 `[N, K]`, -1 in empty rows.
        count: int64 `[N]`.
        mask_params: float32 `[N, K, P]`; None for box-only models.
        mask_features: float32 `[N, M, H/4, W/4]`; None for box-only models.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    count: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mask_params: NDArray[np.float32] | None = None
    mask_features: NDArray[np.float32] | None = None


class Network(Protocol):
    """What the Predictor drives: this module's `OnnxNetwork`, or a torch model during training."""

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        ...

    def __call__(self, images: NDArray[np.float32]) -> NetworkOutput:
        """Runs preprocessed pictures, float32 `[N, 3, H, W]`, H and W multiples of 32."""
        ...


class OnnxNetwork:
    """A model file in ONNX Runtime.

    Args:
        path: The `.onnx` file.
        device: `auto` takes CUDA where the installed runtime can use it and the CPU otherwise; `cuda` insists.
        threads: Threads of the CPU provider; None leaves it to the runtime (one for each core).
        library: Use this package's operators where the file asks for them. Without them, or where they cannot be loaded
            (which is logged), the runtime takes their definitions in ONNX's own operators, which the file has with it;
            so it does on a GPU where this package was built without CUDA.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: Not an ONNX file, not a centermask model, or one that the installed runtime cannot run.
        ImportError: No onnxruntime is installed; the message says what to install.
        RuntimeError: `device="cuda"` and the runtime has no working CUDA provider.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, device: Device = "auto", threads: int | None = None, library: bool = True
    ) -> None:
        self.path = Path(path)
        runtime = import_onnxruntime()
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such model file")
        if self.path.stat().st_size == 0:
            raise ModelFileError(f"{self.path}: the file is empty (0 bytes)")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        providers = choose_providers(device, runtime.get_available_providers())
        start = functools.partial(_start, runtime, self.path, providers, threads)
        session, problem = None, "it was not asked for"
        if library and "CUDAExecutionProvider" in providers and not ort.has_cuda():
            # Built without CUDA, ours would run on the CPU between the GPU's (docs/deployment.md has the times). Files
            # that have no definitions with them, and runtimes that lack what these need, get ours all the same.
            with contextlib.suppress(ModelFileError):
                session = start(runtime.SessionOptions())
            if session is not None and "CUDAExecutionProvider" not in session.get_providers():
                session = None
        self._uses_library = library and session is None
        if session is None:
            options = runtime.SessionOptions()
            if library:
                try:
                    ort.register(options)
                except ort.LibraryError as error:
                    self._uses_library, problem = False, str(error)
            try:
                session = start(options)
            except ModelFileError as error:
                if self._uses_library:
                    raise
                raise ModelFileError(
                    f"{error}\nThe operators of this package, with which it may run, are not there: {problem}"
                ) from None
        self._session = session
        if device == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise RuntimeError(
                "device='cuda': onnxruntime could not start its CUDA provider; its own message above names the library "
                "that is missing (often cuDNN or a CUDA runtime of another major version)"
            )
        self._info = ModelInfo.from_metadata(self._session.get_modelmeta().custom_metadata_map, str(self.path))
        self._outputs = self._check_signature()
        if library and not self._uses_library and self.device == "cpu" and self._info.profile == "fused":
            _log.warning("%s runs by ONNX's own operators, which is slower: %s", self.path.name, problem)

    @property
    def info(self) -> ModelInfo:
        """What the file's metadata says."""
        return self._info

    @property
    def device(self) -> str:
        """`cuda` or `cpu`: where the session runs."""
        return "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"

    @property
    def uses_library(self) -> bool:
        """Whether this package's operators are there for the session."""
        return self._uses_library

    @property
    def makes_rle(self) -> bool:
        """Whether the file gives finished masks too, for which it wants more inputs."""
        return self._makes_rle

    def _check_signature(self) -> list[str]:
        wanted = list(NetworkOutput._fields[: 4 if self._info.mask_head == "none" else 6])
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        missing = [name for name in wanted if name not in outputs]
        self._makes_rle = inputs == ["image", "image_to_input", "image_size"]
        if missing or not (inputs == ["image"] or self._makes_rle):
            raise ModelFileError(
                f"{self.path}: expected input 'image' and outputs {', '.join(wanted)}; "
                f"got inputs {', '.join(inputs)} and outputs {', '.join(outputs)}"
            )
        return wanted

    def __call__(self, images: NDArray[np.float32]) -> NetworkOutput:
        """See `Network`."""
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.float32:
            raise ValueError(f"images must be float32 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        feeds: dict[str, NDArray[Any]] = {"image": images}
        if self._makes_rle:
            # The Predictor chooses instances before it makes masks: here they are made for pictures of one pixel.
            feeds["image_to_input"] = np.tile(np.eye(2, 3), (len(images), 1, 1))
            feeds["image_size"] = np.ones((len(images), 2), np.int64)
        try:
            return NetworkOutput(*self._session.run(self._outputs, feeds))
        except Exception as error:  # the runtime's exceptions share no base class of their own
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RuntimeError(f"{self.path} failed on an input of {list(images.shape)}: {reason}") from error


def _start(runtime: Any, path: Path, providers: list[str], threads: int | None, options: Any) -> Any:
    """A session; ModelFileError where the runtime cannot make one."""
    options.log_severity_level = 3  # the runtime's warnings about constant folding mean nothing to users
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the runtime's exceptions share no base class of their own
        raise ModelFileError(explain_failure(path, str(error), runtime.__version__)) from None


def import_onnxruntime() -> Any:
    """The onnxruntime module; ImportError with install advice where there is none."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ImportError(INSTALL_ADVICE) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        # Uninstalling one of onnxruntime and onnxruntime-gpu deletes files of the other and leaves an empty package.
        raise ImportError(
            "the installed onnxruntime is broken (has no InferenceSession), as happens when onnxruntime and "
            "onnxruntime-gpu were both installed and one removed. Uninstall both, then install one again."
        )
    return onnxruntime


def choose_providers(device: str, available: list[str]) -> list[str]:
    """Execution providers for a device name, best first.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: `cuda`, and the installed runtime was built without it.
    """
    if device not in get_args(Device):
        raise ValueError(f"device must be one of {', '.join(get_args(Device))}; got {device!r}")
    has_cuda = "CUDAExecutionProvider" in available
    if device == "cuda" and not has_cuda:
        raise RuntimeError(
            f"device='cuda': the installed onnxruntime has no CUDA provider (it has {', '.join(available)}); "
            "uninstall onnxruntime, then pip install 'centermask[gpu]'"
        )
    return (
        ["CUDAExecutionProvider", "CPUExecutionProvider"] if has_cuda and device != "cpu" else ["CPUExecutionProvider"]
    )


def explain_failure(path: Path, message: str, version: str) -> str:
    """Turns a message of ONNX Runtime about a model that does not load into one that says what to do."""
    parts = re.findall(r"\d+", version)[:2]
    first_line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    if [int(part) for part in parts] < [1, 25] and ("DeformConv" in message or "opset" in message.lower()):
        return (
            f"{path}: needs onnxruntime >= 1.25, which brought ai.onnx DeformConv; installed is {version}. "
            "pip install -U onnxruntime (needs Python >= 3.11), or export it again with --profile fused or decomposed"
        )
    if path.suffix in (".pt", ".pth", ".ckpt"):
        return f"{path}: a checkpoint is not what runs here: make an .onnx file of it with `centermask export`"
    if "INVALID_PROTOBUF" in message or "Protobuf parsing failed" in message:
        return f"{path}: not an ONNX model (cannot be parsed)"
    return f"{path}: onnxruntime {version} cannot load it: {first_line}"
