"""Times whole predictions: what surrounds the network, and what evaluating its heads at K centres only is worth.

    python benchmarks/predict.py --threads 2 --json predict.json

`outside the network` is a Predictor whose network answers at once, with 20 instances, on a 1920x1080 array: all that
lies between the array and run lengths. `full frame` is the post-processing of YOLO-like models, written for this
comparison (masks.py), on the same instances, with OpenCV and NumPy before it.

`network` is the embedded model in ONNX Runtime at 512x512: the heatmap everywhere, the other heads at the best K cells.
`network, dense heads` is the same with those heads evaluated everywhere besides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import interleaved
import masks as mask_benchmark
import numpy as np
import preprocess as preprocess_benchmark

from centermask import Predictor, ort
from centermask.metadata import ModelInfo
from centermask.predictor import model_path
from centermask.session import NetworkOutput, OnnxNetwork

INSTANCES = 20


class Recorded:
    """A network that always gives the same."""

    def __init__(self, info: ModelInfo, output: NetworkOutput) -> None:
        self.info = info
        self.output = output

    def __call__(self, images: np.ndarray) -> NetworkOutput:
        return self.output


def recorded(info: ModelInfo, problem: mask_benchmark.Problem) -> Recorded:
    count, rows = len(problem.boxes), 100
    params = np.zeros((1, rows, problem.params.shape[1]), np.float32)
    boxes = np.zeros((1, rows, 4), np.float32)
    scores, labels = np.zeros((1, rows), np.float32), np.full((1, rows), -1, np.int64)
    params[0, :count], boxes[0, :count] = problem.params, problem.boxes
    scores[0, :count], labels[0, :count] = np.linspace(0.95, 0.4, count), np.arange(count) % len(info.class_names)
    features = np.zeros((1, 8, 128, 128), np.float32)
    features[0, :, : problem.features.shape[1]] = problem.features
    return Recorded(info, NetworkOutput(boxes, scores, labels, np.array([count]), params, features))


def with_dense_heads(path: Any) -> bytes:
    """The model file with its sparse heads' convolutions over the whole map added, and one row of each for output."""
    import onnx

    model = onnx.load(path)
    graph, helper = model.graph, onnx.helper
    widths = {"size": (64, 2), "offset": (64, 2), "mask_params": (128, 169)}
    # What the patches are gathered from: by our operation, or in a model of profile `standard` after padding.
    features = [node.input[0] for node in graph.node if node.op_type in ("GatherPatches", "Pad")][-1]
    rng = np.random.default_rng(0)

    def constant(name: str, values: np.ndarray) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    ends = [constant(f"dense_{name}", np.array([value])) for name, value in (("begin", 0), ("end", 1), ("axis", 2))]
    for name, (hidden, out) in widths.items():
        first = constant(f"dense_{name}_1", rng.normal(0, 0.04, (hidden, 64, 3, 3)).astype(np.float32))
        second = constant(f"dense_{name}_2", rng.normal(0, 0.1, (out, hidden, 1, 1)).astype(np.float32))
        stages = [f"dense_{name}_{stage}" for stage in ("hidden", "relu", "map", "row")]
        graph.node.append(helper.make_node("Conv", [features, first], [stages[0]], pads=[1, 1, 1, 1]))
        graph.node.append(helper.make_node("Relu", [stages[0]], [stages[1]]))
        graph.node.append(helper.make_node("Conv", [stages[1], second], [stages[2]]))
        graph.node.append(helper.make_node("Slice", [stages[2], *ends], [stages[3]]))
        graph.output.append(helper.make_tensor_value_info(stages[3], onnx.TensorProto.FLOAT, None))
    data: bytes = model.SerializeToString()
    return data


def network_calls(threads: int) -> dict[str, interleaved.Call]:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    ort.register(options)
    image = np.random.default_rng(0).standard_normal((1, 3, 512, 512), np.float32)
    path = model_path("default")
    sessions = {
        "network": onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]),
        "network, dense heads": onnxruntime.InferenceSession(
            with_dense_heads(path), options, providers=["CPUExecutionProvider"]
        ),
    }
    return {name: lambda session=session: session.run(None, {"image": image}) for name, session in sessions.items()}


def main() -> None:
    arguments = interleaved.parser_of(__doc__).parse_args()
    interleaved.set_threads(arguments.threads)
    image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    problem = mask_benchmark.make_problem("dynamic", INSTANCES, 1080, 1920, 0.6e6, 512)
    info = OnnxNetwork(model_path("default"), device="cpu", threads=1).info
    info = dataclasses.replace(info, preprocess=dataclasses.replace(info.preprocess, size=512))
    predictor = Predictor(recorded(info, problem), threads=arguments.threads, max_overlap=0.99, score_threshold=0.3)
    assert len(predictor(image).masks.rle) == INSTANCES
    calls: dict[str, interleaved.Call] = {"outside the network": lambda: predictor(image).masks.rle}
    resize = preprocess_benchmark.peers(image, 512, 512 / 1920).get("OpenCV + NumPy")
    if resize is not None:
        calls["full frame"] = lambda: (resize(), mask_benchmark.full_frame(problem))
    rows: list[dict[str, Any]] = [
        {"case": "1920x1080, 20 instances", "milliseconds": interleaved.interleave(calls, arguments.seconds)},
        {
            "case": "512x512",
            "milliseconds": interleaved.interleave(network_calls(arguments.threads), arguments.seconds),
        },
    ]
    interleaved.report(arguments, "predict", rows)


if __name__ == "__main__":
    main()
