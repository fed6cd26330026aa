"""The parts of `centermask validate`, each against plain loops or a peer; and reading COCO files as a stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from centermask import ops
from centermask.training.layouts import DataError, Split
from centermask.validate import duplicates
from centermask.validate.masks import check, crosses_itself
from centermask.validate.pictures import perceptual_hash
from centermask.validate.run import validate
from centermask.validate.sizes import center_heatmap
from centermask.validate.stream import Index, scan

WIDTH, HEIGHT = 120, 90
SQUARE = [20.0, 20.0, 60.0, 20.0, 60.0, 50.0, 20.0, 50.0]


def test_near_groups_find_all_pairs_within_the_distance() -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 1 << 63, 40, dtype=np.uint64)
    flipped = base[:20].copy()
    for i in range(20):
        for bit in rng.choice(64, min(i % 8, 7), replace=False):
            flipped[i] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.concatenate([base, flipped])
    thumbnails = rng.integers(0, 256, (40, 16, 16)).astype(np.uint8)
    thumbnails = np.concatenate([thumbnails, thumbnails[:20]])
    expected = [[i, 40 + i] for i in range(20) if i % 8 <= duplicates.MOST_BITS]
    assert sorted(duplicates.near_groups(hashes, thumbnails)) == expected
    thumbnails[40:] = rng.integers(0, 256, (20, 16, 16))  # the hash alone is not believed
    assert duplicates.near_groups(hashes, thumbnails) == []
    assert duplicates.near_groups(hashes, np.full((60, 16, 16), 7, np.uint8)) == [], "flat pictures are all alike"


def test_the_heatmap_is_the_one_that_training_draws() -> None:
    torch = pytest.importorskip("torch")
    from centermask.training.targets import heatmap_targets

    rng = np.random.default_rng(3)
    corner = rng.uniform(-5, 200, (12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 90, (12, 2))], axis=1)
    none = torch.zeros(12, dtype=torch.long)
    expected = heatmap_targets(torch.tensor(boxes / 4, dtype=torch.float32), none, none, (1, 1, 40, 56))[0, 0].numpy()
    np.testing.assert_allclose(center_heatmap(boxes, (40, 56)), expected, atol=1e-6)


def crosses_by_loops(ring: np.ndarray) -> bool:
    def side(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> float:
        return float((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]))

    n = len(ring)
    for i in range(n):
        for j in range(i):
            a, b, c, d = ring[i], ring[(i + 1) % n], ring[j], ring[(j + 1) % n]
            if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
                return True
    return False


def test_self_crossing_equals_plain_loops() -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for n in (3, 4, 5, 6, 9, 300):
        for _ in range(12 if n < 100 else 2):
            angles = np.sort(rng.uniform(0, 2 * np.pi, n))
            ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(5, 9)
            if n < 100 and rng.random() < 0.6:
                ring = rng.permutation(ring)
            assert crosses_itself(ring) == crosses_by_loops(ring)
            seen.add(crosses_itself(ring))
    assert seen == {True, False}
    late = np.stack([np.cos(np.linspace(0, 6, 700)), np.sin(np.linspace(0, 6, 700))], axis=1)
    late[[650, 660]] = late[[660, 650]]
    assert crosses_itself(late), "beyond the first block too"


def test_rle_and_polygons_of_one_mask_are_checked_alike() -> None:
    rle = ops.rle_from_polygons([SQUARE], HEIGHT, WIDTH)
    for counts in (rle["counts"].decode(), [int(n) for n in ops.rle_to_counts(rle)]):
        checked = check(
            {"bbox": [20.0, 20.0, 40.0, 30.0], "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
            WIDTH,
            HEIGHT,
        )
        assert (checked.defects, checked.box, checked.area) == ([], (20.0, 20.0, 40.0, 30.0), 1200.0)


def test_hashes_of_a_picture_and_its_small_copy_are_near() -> None:
    rng = np.random.default_rng(2)
    photo = cv2.resize(rng.integers(0, 256, (6, 8)).astype(np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    first, _ = perceptual_hash(photo)
    second, _ = perceptual_hash(cv2.resize(photo, (200, 150), interpolation=cv2.INTER_AREA))
    other, _ = perceptual_hash(255 - photo)
    assert bin(first ^ second).count("1") <= 2
    assert bin(first ^ other).count("1") > 40


# ---- streaming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
def test_scanning_gives_what_json_gives_and_where_it_stands(tmp_path: Path, indent: int | None) -> None:
    content = {
        "info": {"images": [1, 2], "x": "]}"},
        "annotations": [{"id": n, "note": 'é\u4e2d"],' * (n % 3)} for n in range(300)],
        "images": [],
        "categories": [{"id": 1}, 5, None, "x", [1, [2]]],
        "last": 12345,
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    rows = list(scan(path))
    for key in ("annotations", "images", "categories"):
        assert [row.value for row in rows if row.key == key] == content[key]
    data = path.read_bytes()
    assert all(json.loads(data[row.start : row.end]) == row.value for row in rows)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"images": [', '{"images": [{"id": 1} {"id": 2}]}', '{"images": 3}', "{1"]
)
def test_what_is_no_coco_file_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.json"):
        Index(Split("train", "plain", tmp_path / "train.json", tmp_path, (tmp_path,)))
    report = validate(tmp_path)
    assert report.findings.counts["split-unreadable"] == 1
    assert report.exit_code == 1


def test_annotations_are_found_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"id": n, "image_id": f"i{n % 5}", "category_id": 1, "name": "ü"} for n in range(50)]
    images = [{"id": f"i{n}", "file_name": f"ä{n}.png"} for n in range(5)]
    for keys in (("images", "annotations", "categories"), ("annotations", "categories", "images")):
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "c"}]}
        path = tmp_path / "train.json"
        path.write_text(json.dumps({key: content[key] for key in keys}, ensure_ascii=False), encoding="utf-8")
        with Index(Split("train", "plain", path, tmp_path, (tmp_path,))) as index:
            assert index.images[2].file_name == "ä2.png"
            assert index.annotations(2) == [row for row in rows if row["image_id"] == "i2"]


def test_memory_does_not_follow_the_size_of_the_file(tmp_path: Path) -> None:
    """50,000 pictures with 150,000 annotations: far less memory than the file parsed at once."""
    path = tmp_path / "train.json"
    flat = ",".join(["12.25,7.5"] * 40)
    with open(path, "w") as file:
        images = ",".join(f'{{"id":{n},"file_name":"{n}.jpg","width":640,"height":480}}' for n in range(50_000))
        file.write(f'{{"images":[{images}],"categories":[{{"id":1,"name":"a"}}],"annotations":[')
        for n in range(150_000):
            row = f'{{"id":{n},"image_id":{n % 50_000},"category_id":1,"bbox":[1,2,3,4],"segmentation":[[{flat}]]}}'
            file.write(row + ("," if n < 149_999 else "]}"))
    code = f"""
import resource, sys
from pathlib import Path
from centermask.training.layouts import Split
from centermask.validate.stream import Index
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path = Path({str(path)!r})
index = Index(Split("train", "plain", path, path.parent, (path.parent,)))
assert len(index.images) == 50_000 and len(index.annotations(49_999)) == 3
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert int(done.stdout) * 1024 < 0.9 * path.stat().st_size, "parsed at once it takes several times the file"
