"""Models of one operator of ours each, and sessions of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from centermask import ort

DEVICE = "cpu"
"""Where sessions run; `test_ort_cuda.py` sets `cuda`."""

OUTPUTS = {
    "DeformConv": ("Y",),
    "DecodeCenters": ("scores", "labels", "index", "count"),
    "GatherPatches": ("patches",),
    "AssembleMasks": ("rle_counts", "rle_offsets"),
}


def model_of(
    operator: str,
    inputs: Mapping[str, np.ndarray | None],
    constants: Sequence[str] = (),
    *,
    version: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; None leaves an input out. Shapes are left open, so that an operator sees whatever comes."""
    present = {name: value for name, value in inputs.items() if value is not None}
    names = [name if name in present else "" for name in inputs]
    while names and not names[-1]:
        names.pop()
    node = helper.make_node(operator, names, OUTPUTS[operator], domain="centermask", **attributes)

    def types(name: str) -> int:
        if name in present:
            return helper.np_dtype_to_tensor_dtype(present[name].dtype)
        first = next(iter(present.values())).dtype
        same = {"Y", "patches"}
        return {"scores": 1, "rle_counts": 12}.get(name, helper.np_dtype_to_tensor_dtype(first) if name in same else 7)

    graph = helper.make_graph(
        [node],
        operator,
        [
            helper.make_tensor_value_info(name, types(name), [f"{name}_{i}" for i in range(value.ndim)])
            for name, value in present.items()
            if name not in constants
        ],
        [helper.make_tensor_value_info(name, types(name), None) for name in OUTPUTS[operator]],
        [numpy_helper.from_array(np.ascontiguousarray(present[name]), name) for name in constants],
    )
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("centermask", version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def session_of(model: onnx.ModelProto, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    ort.register(options)
    providers = ["CPUExecutionProvider"]
    if DEVICE == "cuda":
        # An operator that the CUDA provider does not take is an error here, and does not run on the CPU unseen.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = ["CUDAExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def run(
    operator: str,
    inputs: Mapping[str, np.ndarray | None],
    constants: Sequence[str] = (),
    threads: int = 2,
    **attributes: Any,
) -> list[np.ndarray]:
    """The outputs of one operator."""
    session = session_of(model_of(operator, inputs, constants, **attributes), threads)
    feeds = {name: value for name, value in inputs.items() if value is not None and name not in constants}
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs
