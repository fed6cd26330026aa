"""`examples/small_set.py`: the same few pictures from the same data, and nothing else of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL")

import layout_folders

from centermask.training.data import load_datasets

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "small_set.py"


def take(data: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(data), str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_few_pictures_of_some_classes(tmp_path: Path) -> None:
    data = layout_folders.write(tmp_path / "data", "plain")
    whole = {split: load_datasets([data], split) for split in ("train", "val")}
    done = take(data, tmp_path / "a", "--classes", "dog", "--pictures", "2")
    assert done.returncode == 0, done.stderr
    assert "train: 2 pictures" in done.stdout
    for split, pictures in (("train", 2), ("val", None)):
        part = load_datasets([tmp_path / "a"], split)
        assert part.class_names == ("dog",)
        assert not part.problems
        label = whole[split].class_names.index("dog")
        shows = {r.path.name: sum(a.label == label for a in r.annotations) for r in whole[split].records}
        assert pictures in (None, len(part))
        assert len(part) == pictures or len(part) == sum(count > 0 for count in shows.values())
        for record in part.records:
            assert len(record.annotations) == shows[record.path.name] > 0
    # The order of the file has no say.
    document = json.loads((data / "train.json").read_text())
    (data / "train.json").write_text(json.dumps(document | {"images": document["images"][::-1]}))
    assert take(data, tmp_path / "b", "--classes", "dog", "--pictures", "2").returncode == 0
    names = [sorted(path.name for path in (tmp_path / part / "images").iterdir()) for part in "ab"]
    assert names[0] == names[1]


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = take(layout_folders.write(tmp_path / "data", "plain"), tmp_path / "a", "--classes", "yak")
    assert done.returncode == 1
    assert "got ['yak']" in done.stderr
