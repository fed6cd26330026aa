"""Predicts on any number of pictures with Ray Data: on all cores of a machine, or of a cluster that Ray was started on.

    pip install "centermask[cpu]" "ray[data]"
    python examples/ray_data.py pictures/ found/                          # a folder, or s3://, gs://
    python examples/ray_data.py pictures/ found/ --gpus 1                 # one model on each GPU (centermask[gpu])

Writes Parquet, a row for each instance: path, category_id, label, score, bbox (x, y, width, height), and the mask as
COCO run lengths (height, width, counts). Each worker loads the model once and predicts pictures as they come.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray

from centermask import Predictor

COLUMNS = ("path", "category_id", "label", "score", "bbox", "height", "width", "counts", "error")


class Worker:
    """What runs on each worker: a model, and a function from a batch of files to a batch of instances."""

    def __init__(self, model: str, device: str, threads: int | None) -> None:
        self._predictor = Predictor(model, device=device, threads=threads)  # type: ignore[arg-type]

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}

        def add(*row: Any) -> None:
            for name, value in zip(COLUMNS, row, strict=True):
                columns[name].append(value)

        for path, data in zip(batch["path"], batch["bytes"], strict=True):
            try:
                result = self._predictor(bytes(data))
            except ValueError as error:  # no picture, or a damaged one: a row that says so, and on with the others
                add(path, -1, "", 0.0, [0.0] * 4, 0, 0, "", str(error))
                continue
            for label, found in zip(result.names, result.to_coco(0), strict=True):
                counts = found.get("segmentation", {}).get("counts", "")
                add(path, found["category_id"], label, found["score"], found["bbox"], *result.image_size, counts, "")
        return columns


def predict(
    source: str, model: str = "default", *, gpus: int = 0, threads: int = 1, workers: int = 0, batch: int = 16
) -> ray.data.Dataset:
    """A data set of instances, made when it is consumed.

    Args:
        source: Folder, file or address of pictures.
        model: As `Predictor` takes it; a path must be the same on all machines.
        gpus: How many to use, one model on each; 0 for the CPU.
        threads: CPU cores for each model.
        workers: How many models on CPUs at most; 0: as many as there is room for.
        batch: Pictures given to a worker at once; they are predicted one by one.
    """
    files = ray.data.read_binary_files(source, include_paths=True)
    if not workers:
        workers = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads - 1)  # one is for reading
    return files.map_batches(
        Worker,
        fn_constructor_args=(model, "cuda" if gpus else "cpu", threads),
        batch_size=batch,
        num_cpus=threads,
        num_gpus=1 if gpus else 0,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", help="folder or address for Parquet files")
    parser.add_argument("--model", default="default", help="default: %(default)s")
    parser.add_argument("--gpus", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores for each model, default: %(default)s")
    options = parser.parse_args()
    ray.init()
    predict(options.source, options.model, gpus=options.gpus, threads=options.threads).write_parquet(options.out)


if __name__ == "__main__":
    main()
