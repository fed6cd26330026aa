"""Checkpoint files: never half-written, never trusted."""

from __future__ import annotations

import errno
import io
import os
import pickle
import stat

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch

from centermask.config import ModelConfig
from centermask.nn.model import CenterMask
from centermask.training import checkpoint as module
from centermask.training.checkpoint import Checkpoint, load_checkpoint, rows_by_class, save_checkpoint, slim_checkpoint

CONFIG = ModelConfig.from_name("test_efficientnet-conv-dynamic", class_names=("cat", "dog"), category_ids=(3, 7))


def small(value=1.0, config=CONFIG):
    weights = {"heatmap.out.weight": torch.full((2, 3, 1, 1), value), "heatmap.out.bias": torch.tensor([1.0, 2.0])}
    return Checkpoint(config, weights, {"step": 3, "best": {}, "rates": [0.5]}, {"data": ["a"], "ap": {}})


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "a.pt"
    save_checkpoint(path, small())
    loaded = load_checkpoint(path)
    assert loaded.config == CONFIG
    assert {k: v.tolist() for k, v in loaded.model.items()} == {k: v.tolist() for k, v in small().model.items()}
    assert (loaded.training, loaded.info) == (small().training, small().info)
    assert list(path.parent.iterdir()) == [path]


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    good = Checkpoint(ModelConfig(class_names=("a",), category_ids=(1,)), {}, {}, {"ap": {"latency_ms": 1.5}})
    save_checkpoint(tmp_path / "a.pt", good)
    bad = Checkpoint(good.config, {}, {}, {"ap": {"latency_ms": np.float64(1.5)}})
    with pytest.raises(TypeError, match=r"plain values only; info.ap.latency_ms is a <class 'numpy.float64'>"):
        save_checkpoint(tmp_path / "a.pt", bad)
    assert load_checkpoint(tmp_path / "a.pt").info == good.info


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a.pt", small())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == 0o640


@pytest.mark.parametrize("failure", ["write", "sync", "rename", "torch"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, failure):
    path = tmp_path / "a.pt"
    save_checkpoint(path, small(1.0))
    old = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_written(values, file):
        file.write(b"PK half of it")
        full()

    def as_torch_says_it(values, file):
        file.write(b"PK half of it")
        raise RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0")

    if failure == "write":
        monkeypatch.setattr(module.torch, "save", half_written)
    elif failure == "torch":
        monkeypatch.setattr(module.torch, "save", as_torch_says_it)
    else:
        monkeypatch.setattr(module.os, {"sync": "fsync", "rename": "replace"}[failure], full)
    with pytest.raises(OSError, match="a.pt" if failure == "torch" else "No space"):
        save_checkpoint(path, small(2.0))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk(tmp_path, monkeypatch):
    """The kernel's own ENOSPC, met at the first flush of torch's writer."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, small(1.0))
    old = path.read_bytes()
    original = module.tempfile.mkstemp

    def on_full_device(**kwargs):
        descriptor, name = original(**kwargs)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(module.tempfile, "mkstemp", on_full_device)
    big = Checkpoint(CONFIG, {"w": torch.zeros(100_000)})
    with pytest.raises(OSError, match=r"a\.pt|No space"):
        save_checkpoint(path, big)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def torch_bytes(values):
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("zip.pt", torch_bytes({"format": Evil()})), ("raw.pt", pickle.dumps(Evil()))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a readable checkpoint") as caught:
            load_checkpoint(tmp_path / name)
        assert "weights_only" not in str(caught.value), "torch's advice to run the code all the same"
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"hello", "not a readable checkpoint"),
        (b"\x80\x02}", "not a readable checkpoint"),
        (torch_bytes([1, 2]), "not a centermask checkpoint"),
        (torch_bytes({"state_dict": {}, "epoch": 3}), "not a centermask checkpoint"),
        (torch_bytes({"format": module.FORMAT}), "checkpoint version None"),
        (torch_bytes({"format": module.FORMAT, "version": 2, "config": {"new": 1}}), "version 2; this .* up to 1"),
        (torch_bytes({"format": module.FORMAT, "version": 1}), "damaged"),
        (torch_bytes({"format": module.FORMAT, "version": 1, "config": {"new": 1}, "model": {}}), "unknown model sett"),
        (torch_bytes({"format": module.FORMAT, "version": 1, "config": {}, "model": {"w": 1}}), "not all weights"),
        (torch_bytes({"format": module.FORMAT, "version": 1, "config": {}, "model": None}), "damaged"),
    ],
)
def test_files_that_are_not_ours(tmp_path, content, message):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "x.pt" in str(caught.value)


def test_a_truncated_file(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, small())
    whole = path.read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            load_checkpoint(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path)


def test_build_gives_the_same_outputs_and_refuses_others(tmp_path):
    torch.manual_seed(0)
    model = CenterMask(CONFIG).eval()
    save_checkpoint(tmp_path / "a.pt", Checkpoint(CONFIG, model.state_dict()))
    images = torch.randn(1, 3, 64, 64)
    built = load_checkpoint(tmp_path / "a.pt").build()
    assert not built.training
    with torch.no_grad():
        assert torch.equal(model(images).heatmap, built(images).heatmap)
    with pytest.raises(ValueError, match="do not fit its model test_efficientnet-conv-dynamic"):
        Checkpoint(CONFIG, {}).build()


def test_slim_checkpoints_are_half_as_large_and_lose_nothing_out_of_range():
    model = CenterMask(CONFIG)
    weights = model.state_dict()
    weights["mask_features.bn.running_var"][0] = 1e6  # beyond float16
    slim = slim_checkpoint(Checkpoint(CONFIG, weights, {"step": 1}, {"data": []}))
    assert (slim.training, slim.info) == ({}, {"data": []})
    assert slim.model["heatmap.hidden.weight"].dtype == torch.float16
    assert float(slim.build().mask_features.bn.running_var[0]) == 1e6
    assert all(bool(v.isfinite().all()) for v in slim.model.values())


def test_rows_follow_their_classes():
    """Fine-tuning for ("dog", "horse", "cat") takes the row of dog for dog, not row 0 for row 0."""
    target = {"heatmap.out.weight": torch.zeros(3, 3, 1, 1), "heatmap.out.bias": torch.tensor([-1.0, -2.0, -3.0])}
    rows = rows_by_class(small(), ("dog", "horse", "cat"), target)
    assert rows["heatmap.out.bias"].tolist() == [2.0, -2.0, 1.0]
    assert rows["heatmap.out.weight"].flatten(1).tolist() == [[1.0] * 3, [0.0] * 3, [1.0] * 3]
    assert target["heatmap.out.bias"].tolist() == [-1.0, -2.0, -3.0]
    # Nothing in common: the head starts anew. Same classes: as saved. Another width of the head: anew.
    assert rows_by_class(small(), ("horse",), target) == {}
    same = rows_by_class(small(), ("cat", "dog"), {k: torch.zeros_like(v) for k, v in small().model.items()})
    assert all(torch.equal(same[k], v) for k, v in small().model.items())
    wider = {"heatmap.out.weight": torch.zeros(2, 9, 1, 1), "heatmap.out.bias": torch.zeros(2)}
    assert "heatmap.out.weight" not in rows_by_class(small(), ("cat", "dog"), wider)
