"""A model repository for NVIDIA's Triton Inference Server, with our operators in it.

The format is that of Triton's documentation (docs/user_guide/model_repository.md, model_configuration.md) and of
model_config.proto of github.com/triton-inference-server/common.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import onnx

from centermask import __version__, ort
from centermask.files import write_atomically
from centermask.metadata import PREFIX, ModelFileError, ModelInfo

MOUNT = "/models"
"""Where the repository lies for the server, unless said otherwise: the place that Triton's own examples use."""

MAX_BATCH_SIZE = 8

_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT32: "TYPE_UINT32",
}

_README = """\
# {name} for Triton Inference Server

Written by centermask {version}. Start the server with this folder at `{mount}`, which `config.pbtxt` names:

    docker run --rm --gpus=all -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD:{mount}" \\
      nvcr.io/nvidia/tritonserver:<yy.mm>-py3 tritonserver --model-repository={mount}

Without a GPU leave `--gpus=all` out. The server is ready when `curl -f localhost:8000/v2/models/{name}/ready` succeeds.

{library}

Requests carry pictures that are preprocessed already, and answers hold what `assemble_masks` makes masks of. The
metadata of the model file stands under `parameters`, so that a client has everything: `examples/triton_client.py` of
centermask is one.

This folder was not run in a server by those who wrote it: its configuration was checked against model_config.proto.
"""

_WITH_LIBRARY = """\
The operators of the domain `centermask` come from `{name}/{library}`, which `model_operations` in `config.pbtxt` has
the server load; it is for Linux on {machine}. At another place in the server, change that path: it is absolute, as a
bare file name would be looked for in `LD_LIBRARY_PATH` alone. `LD_PRELOAD`, with which Triton loads layers of TensorRT,
is not enough: ONNX Runtime wants operators registered. On a GPU, use a library built with `CENTERMASK_CUDA=ON`; one
without computes these operators on the CPU, and the runtime copies to and fro."""

_WITHOUT_LIBRARY = (
    "The model needs no operators but ONNX's own: a server with ONNX Runtime {runtime} or newer runs `{profile}`."
)


def write_repository(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    mount: str = MOUNT,
    library: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes `<folder>/<name>/{config.pbtxt, 1/model.onnx, libcentermask_ort.so}` and `<folder>/README.md`.

    Files of an earlier repository of that name are replaced, others are left alone.

    Args:
        model: An `.onnx` file of `centermask export`.
        folder: The model repository.
        name: Of the model in the server; None takes the file's.
        mount: Where the server sees `folder`.
        library: The operator library to copy; None takes that of this installation. Profile `fused` alone uses it.

    Returns:
        The model's folder.

    Raises:
        FileNotFoundError: There is no such model, or no such library.
        ModelFileError: It is no model of ours.
        ValueError: The name cannot be that of a folder, or `mount` is not absolute.
        centermask.ort.LibraryError: The model is `fused`, and this installation has no operator library.
    """
    path = Path(model)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    name = path.stem if name is None else name
    if not name or name in (".", "..") or "/" in name:
        raise ValueError(f"triton: name must be that of a folder, got {name!r}")
    if not mount.startswith("/"):
        raise ValueError(f"triton: mount must be an absolute path, got {mount!r}")
    serialized = path.read_bytes()
    try:
        proto = onnx.load_from_string(serialized)
    except Exception as error:  # protobuf's exceptions share no base class of their own
        raise ModelFileError(f"{path}: not an ONNX model (cannot be parsed)") from error
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    info = ModelInfo.from_metadata(metadata, str(path))

    place = Path(folder) / name
    (place / "1").mkdir(parents=True, exist_ok=True)
    operators = None
    runtime = "1.25" if info.profile == "standard" else "1.16"
    says = _WITHOUT_LIBRARY.format(profile=info.profile, runtime=runtime)
    if info.profile == "fused":
        source = ort.library_path() if library is None else Path(library)
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such operator library")
        # Never written over in place: a server that runs has the old file mapped.
        write_atomically(place / ort.LIBRARY, source.read_bytes())
        operators = f"{mount.rstrip('/')}/{name}/{ort.LIBRARY}"
        says = _WITH_LIBRARY.format(name=name, library=ort.LIBRARY, machine=os.uname().machine)
    write_atomically(place / "1" / "model.onnx", serialized)
    write_atomically(place / "config.pbtxt", config(proto, info, name, operators).encode())
    readme = _README.format(name=name, version=__version__, mount=mount, library=says)
    write_atomically(Path(folder) / "README.md", readme.encode())
    return place


def config(proto: onnx.ModelProto, info: ModelInfo, name: str, operators: str | None) -> str:
    """The text of `config.pbtxt`.

    Args:
        proto: The model.
        info: What it says about itself.
        name: Of the model in the server.
        operators: Path of the operator library in the server; None for none.
    """
    # Run lengths of all pictures stand in one output, one after the other: the server could not take them apart.
    batches = all(value.name not in ("rle_counts", "rle_offsets") for value in proto.graph.output)
    inputs = ",\n".join(_tensor(value, batches) for value in proto.graph.input)
    outputs = ",\n".join(_tensor(value, batches) for value in proto.graph.output)
    parts = [
        f"name: {_text(name)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH_SIZE if batches else 0}",
        f"input [\n{inputs}\n]",
        f"output [\n{outputs}\n]",
        # One on each GPU, or one on the CPU; on a CPU each instance takes all cores.
        "instance_group [\n  { count: 1, kind: KIND_AUTO }\n]",
        "version_policy: { latest: { num_versions: 1 } }",
    ]
    if batches:
        # Requests of one size are joined, and wait for each other no longer than this.
        parts.append("dynamic_batching { max_queue_delay_microseconds: 2000 }")
        side = info.preprocess.size if info.preprocess.size % 32 == 0 else 512
        fixed = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]]
        height, width = (size or side for size in fixed)
        parts.append(
            "model_warmup [\n"
            f'  {{ name: "black", batch_size: 1, inputs {{ key: "image", value: {{ data_type: TYPE_FP32, '
            f"dims: [ 3, {height}, {width} ], zero_data: true }} }} }}\n]"
        )
    if operators is not None:
        parts.append(f"model_operations {{ op_library_filename: {_text(operators)} }}")
    for entry in proto.metadata_props:
        if entry.key.startswith(PREFIX):
            parts.append(f"parameters {{ key: {_text(entry.key)}, value: {{ string_value: {_text(entry.value)} }} }}")
    return "\n".join(parts) + "\n"


def _tensor(value: Any, batches: bool) -> str:
    """An input or output. Sizes that are not fixed are -1; where the server makes batches, it adds the first itself."""
    dims = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
    reshape = ""
    if batches:
        dims = dims[1:]
        if not dims:  # Triton has no tensors without dimensions: one number for each picture becomes a list of one
            dims, reshape = [1], ", reshape: { shape: [ ] }"
    data_type = _TYPES[value.type.tensor_type.elem_type]
    return f"  {{ name: {_text(value.name)}, data_type: {data_type}, dims: [ {', '.join(map(str, dims))} ]{reshape} }}"


def _text(value: str) -> str:
    """A string of protobuf's text format, which knows the escapes of JSON."""
    return json.dumps(value, ensure_ascii=False)
