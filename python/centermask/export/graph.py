"""Passes over an exported graph, and the types of ONNX that they need."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper


def fold_batch_norms(graph: onnx.GraphProto) -> int:
    """Folds each BatchNormalization that follows a DeformConv into its weights; runtimes do so for Conv alone.

    Returns:
        How many were folded.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    folded = 0
    for node in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(node.input[0])
        if conv is None or conv.op_type != "DeformConv" or readers[node.input[0]] != 1:
            continue
        names = [conv.input[1], conv.input[3], *node.input[1:5]]
        if not all(name in constants for name in names):
            continue
        weight, bias, scale, shift, mean, variance = (constants[name].astype(np.float64) for name in names)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        # New constants, as the exporter lets layers of equal values share theirs.
        for place, value in ((1, weight * factor[:, None, None, None]), (3, (bias - mean) * factor + shift)):
            conv.input[place] = f"{conv.output[0]}.folded.{place}"
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), conv.input[place]))
        conv.output[0] = node.output[0]
        graph.node.remove(node)
        folded += 1
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return folded


def store_weights_as_half(graph: onnx.GraphProto, smallest: int = 1024) -> None:
    """Stores float32 constants of `smallest` elements or more as float16, each followed by a Cast back to float32.

    Runtimes compute constant expressions once, when they load the file: nothing is slower afterwards.

    Raises:
        ValueError: A weight is too large for float16.
    """
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < smallest:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ValueError(f"export: {tensor.name} does not fit float16: its largest is {np.abs(values).max()}")
        name = tensor.name
        half = f"{name}.half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], name=f"{name}.widen", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def fuse_relu(graph: onnx.GraphProto, domain: str) -> bool:
    """Gives each DeformConv that a Relu alone reads the attribute `activation`, and makes all DeformConv nodes ours.

    Either all of them take over a Relu or none does, so that one definition in ONNX's operators holds for all.

    Args:
        graph: Of operators of ONNX.
        domain: Of our operator.

    Returns:
        Whether the nodes now have a Relu inside.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    convolutions = [node for node in graph.node if node.op_type == "DeformConv"]
    followers = [readers.get(node.output[0], []) for node in convolutions]
    fuse = all(
        len(nodes) == 1 and nodes[0].op_type == "Relu" and node.output[0] not in outputs
        for node, nodes in zip(convolutions, followers, strict=True)
    )
    for node, nodes in zip(convolutions, followers, strict=True):
        node.domain = domain
        node.attribute.append(helper.make_attribute("activation", "relu" if fuse else "none"))
        if fuse:
            node.output[0] = nodes[0].output[0]
            graph.node.remove(nodes[0])
    return fuse
