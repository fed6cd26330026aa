"""Predicts with a model in Triton Inference Server: only the network runs there, the rest here, as in any Predictor.

    pip install "centermask[cpu]" "tritonclient[http]"
    centermask export runs/mine/best.pt mine.onnx --triton repository    # start a server: repository/README.md
    python examples/triton_client.py mine photo.jpg --url localhost:8000

Tested against a stand-in for the client's connection, not against a server.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient import http

from centermask import Predictor
from centermask.metadata import ModelInfo
from centermask.session import NetworkOutput


class TritonNetwork:
    """A `centermask.session.Network` in a server.

    Args:
        connection: `tritonclient.http.InferenceServerClient`.
        name: Of the model in the server.

    Raises:
        ModelFileError: The model's configuration does not have the metadata that `write_repository` puts there.
    """

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name
        config = connection.get_model_config(name)
        parameters = config.get("parameters", {})
        self._makes_rle = any(value["name"] == "image_size" for value in config.get("input", ()))
        self._info = ModelInfo.from_metadata({key: value["string_value"] for key, value in parameters.items()}, name)

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        return self._info

    def __call__(self, images: NDArray[np.float32]) -> NetworkOutput:
        """Runs preprocessed pictures, float32 `[N, 3, H, W]`."""
        image = http.InferInput("image", list(images.shape), "FP32")
        image.set_data_from_numpy(images)
        inputs = [image]
        if self._makes_rle:  # masks are made here, after the choice of instances: there, of pictures of one pixel
            for key, kind, value in (
                ("image_to_input", "FP64", np.tile(np.eye(2, 3), (len(images), 1, 1))),
                ("image_size", "INT64", np.ones((len(images), 2), np.int64)),
            ):
                inputs.append(http.InferInput(key, list(value.shape), kind))
                inputs[-1].set_data_from_numpy(value)
        names = NetworkOutput._fields[: 4 if self._info.mask_head == "none" else 6]
        wanted = [http.InferRequestedOutput(name) for name in names]
        answer = self._connection.infer(self._name, inputs, outputs=wanted)
        values = [answer.as_numpy(name) for name in names]
        values[3] = values[3].reshape(-1)  # the server gives [N, 1]: it has no outputs of one number for each picture
        return NetworkOutput(*values)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="its name in the server")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--url", default="localhost:8000", help="default: %(default)s")
    options = parser.parse_args()
    predictor = Predictor(TritonNetwork(http.InferenceServerClient(options.url), options.model))
    for picture in options.pictures:
        result = predictor(picture)
        print(f"{picture}: {', '.join(f'{n} {s:.2f}' for n, s in zip(result.names, result.scores, strict=True))}")


if __name__ == "__main__":
    main()
