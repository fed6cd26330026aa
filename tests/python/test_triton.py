"""Model repositories for Triton: by its own description of the format, and through examples/triton_client.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import tiny_model  # noqa: E402

from centermask import Predictor, ort  # noqa: E402
from centermask.export.triton import config, write_repository  # noqa: E402
from centermask.metadata import ModelFileError, ModelInfo  # noqa: E402
from centermask.predictor import model_path  # noqa: E402
from centermask.session import OnnxNetwork  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "triton_client.py"


def parsed(text: str) -> Any:
    """The configuration as Triton's model_config.proto understands it: unknown fields and wrong types are errors."""
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    return pytest.importorskip("google.protobuf.text_format").Parse(text, model_config.ModelConfig())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(model_path("default"), tmp_path, name="animals")


def test_layout(repository: Path, tmp_path: Path) -> None:
    assert (repository / "1" / "model.onnx").read_bytes() == model_path("default").read_bytes()
    assert (repository / ort.LIBRARY).read_bytes() == ort.library_path().read_bytes()
    text = (repository / "config.pbtxt").read_text()
    assert f'model_operations {{ op_library_filename: "/models/animals/{ort.LIBRARY}" }}' in text
    readme = (tmp_path / "README.md").read_text()
    assert "--model-repository=/models" in readme
    assert "was not run in a server" in readme
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_configuration_is_what_triton_documents(repository: Path) -> None:
    settings = parsed((repository / "config.pbtxt").read_text())
    assert (settings.name, settings.backend, settings.max_batch_size) == ("animals", "onnxruntime", 8)
    assert settings.HasField("dynamic_batching")
    assert settings.instance_group[0].count == 1
    assert list(settings.model_operations.op_library_filename) == [f"/models/animals/{ort.LIBRARY}"]
    outputs = {value.name: list(value.dims) for value in settings.output}
    assert {value.name: list(value.dims) for value in settings.input} == {"image": [3, -1, -1]}
    assert outputs["boxes"] == [-1, 4]
    assert outputs["mask_features"] == [8, -1, -1]
    assert outputs["count"] == [1]
    count = next(value for value in settings.output if value.name == "count")
    assert count.HasField("reshape")
    assert list(count.reshape.shape) == []
    (warmup,) = settings.model_warmup
    assert list(warmup.inputs["image"].dims) == [3, 320, 320]
    metadata = {key: value.string_value for key, value in settings.parameters.items()}
    assert ModelInfo.from_metadata(metadata) == OnnxNetwork(model_path("default")).info


def test_shapes_are_those_of_the_runtime(repository: Path) -> None:
    # Triton refuses a model whose outputs differ from its configuration.
    session = pytest.importorskip("onnxruntime").InferenceSession(str(model_path("default")))
    types = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
    text = (repository / "config.pbtxt").read_text()
    for value in (*session.get_inputs(), *session.get_outputs()):
        dims = [size if isinstance(size, int) else -1 for size in value.shape][1:] or [1]
        assert f'name: "{value.name}", data_type: {types[value.type]}, dims: [ {", ".join(map(str, dims))} ]' in text


def test_masks_in_the_graph_are_not_batched() -> None:
    proto = onnx.load(str(model_path("default")))
    info = OnnxNetwork(model_path("default")).info
    value, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    proto.graph.input.append(value("image_to_input", types.DOUBLE, ["N", 2, 3]))
    proto.graph.input.append(value("image_size", types.INT64, ["N", 2]))
    proto.graph.output.append(value("rle_counts", types.UINT32, ["R"]))
    proto.graph.output.append(value("rle_offsets", types.INT64, ["T"]))
    text = config(proto, info, "animals", "/models/x.so")
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    settings = parsed(text)
    assert {value.name: list(value.dims) for value in settings.input}["image_to_input"] == [-1, 2, 3]
    assert {value.name: list(value.dims) for value in settings.output}["rle_counts"] == [-1]


def test_names_with_marks_survive() -> None:
    proto = onnx.load(str(model_path("default")))
    for entry in proto.metadata_props:
        if entry.key == "centermask.training_data":
            entry.value = 'quote " backslash \\ line\nend ü'
    settings = parsed(config(proto, OnnxNetwork(model_path("default")).info, "a", None))
    assert settings.parameters["centermask.training_data"].string_value == 'quote " backslash \\ line\nend ü'
    assert not settings.model_operations.op_library_filename


def test_a_model_without_our_operators_has_no_library(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "tiny.onnx")
    place = write_repository(tmp_path / "tiny.onnx", tmp_path / "repository")
    assert place.name == "tiny"
    assert not (place / ort.LIBRARY).exists()
    assert "op_library_filename" not in (place / "config.pbtxt").read_text()
    assert "no operators but ONNX's own" in (place.parent / "README.md").read_text()


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model file"):
        write_repository(tmp_path / "absent.onnx", tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.onnx"):
        write_repository(tmp_path / "text.onnx", tmp_path)
    with pytest.raises(ValueError, match="name must be that of a folder, got 'a/b'"):
        write_repository(model_path("default"), tmp_path, name="a/b")
    with pytest.raises(ValueError, match="mount must be an absolute path, got 'models'"):
        write_repository(model_path("default"), tmp_path, mount="models")
    with pytest.raises(FileNotFoundError, match="no such operator library"):
        write_repository(model_path("default"), tmp_path, library=tmp_path / "absent.so")


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    cli = pytest.importorskip("centermask.cli")

    class Report:
        def table(self) -> str:
            return ""

    def export(source: Path, path: Path, **_: object) -> Report:  # which has tests of its own
        path.write_bytes(model_path("default").read_bytes())
        return Report()

    monkeypatch.setattr("centermask.export.command.export", export)
    arguments = ["export", "best.pt", str(tmp_path / "mine.onnx"), "--triton", str(tmp_path / "repository")]
    assert cli.main(arguments) == 0
    assert (tmp_path / "repository" / "mine" / "1" / "model.onnx").is_file()


class StandIn:
    """A connection whose server is the runtime here."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._network = OnnxNetwork(model_path("default"))

    def get_model_config(self, name: str) -> dict[str, Any]:
        assert name == "animals"
        parameters = self._settings.parameters.items()
        return {"parameters": {key: {"string_value": value.string_value} for key, value in parameters}}

    def infer(self, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
        (image,) = inputs
        shape = image.shape()
        found = self._network(np.frombuffer(image._get_binary_data(), np.float32).reshape(shape))
        answers = {**found._asdict(), "count": found.count.reshape(-1, 1)}
        asked = {output.name() for output in outputs}

        class Answer:
            def as_numpy(self, name: str) -> Any:
                assert name in asked
                return answers[name]

        return Answer()


def test_the_client_finds_what_the_predictor_finds(repository: Path) -> None:
    pytest.importorskip("tritonclient.http")
    spec = importlib.util.spec_from_file_location("triton_client", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    connection = StandIn(parsed((repository / "config.pbtxt").read_text()))
    picture = model_path("default").parent / "sample.jpg"
    remote = Predictor(client.TritonNetwork(connection, "animals"), score_threshold=0.1)(picture)
    local = Predictor("default", score_threshold=0.1)(picture)
    assert len(local) > 3
    np.testing.assert_array_equal(remote.boxes, local.boxes)
    assert remote.masks is not None
    assert local.masks is not None
    assert remote.masks.rle == local.masks.rle
