"""What a run chooses by itself."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("PIL")

import layout_folders
from coco_folders import TRIANGLE, annotation, coco_folder

from centermask.training.data import load_datasets
from centermask.training.recipe import SIZES, DataFacts, Machine, choose, estimated_seconds

LAPTOP = Machine(cuda=False, cores=2, memory=16 << 30)
GPU = Machine(cuda=True, cores=16, memory=24 << 30)
PHOTOS = DataFacts(pictures=100, longest_side=576.0, small_object=0.2)


def test_a_hundred_photographs_on_a_laptop_fit_into_the_time() -> None:
    recipe = choose(PHOTOS, LAPTOP)
    assert (recipe.size, recipe.batch_size) == (320, 8)
    assert recipe.epochs * math.ceil(100 / recipe.batch_size) >= 300
    assert recipe.seconds <= 40 * 60
    assert "takes 4" in recipe.text()
    assert "--freeze-stages 2" in recipe.text()
    assert "--patience" not in recipe.text()
    assert "--size 320" in recipe.text()
    assert len(recipe.reasons) == 6, "without evaluations there is nothing to be patient with"
    assert recipe.freeze_stages == 2


@pytest.mark.parametrize("pictures", [1, 3, 20, 452, 5_000, 118_000])
@pytest.mark.parametrize("machine", [LAPTOP, GPU, Machine(True, 4, 4 << 30)], ids=["laptop", "gpu", "small gpu"])
@pytest.mark.parametrize("small", [0.005, 0.05, 0.5])
@pytest.mark.parametrize("side", [100.0, 300.0, 640.0, 4000.0])
def test_every_choice_is_usable(pictures: int, machine: Machine, small: float, side: float) -> None:
    recipe = choose(DataFacts(pictures, side, small), machine)
    assert recipe.size in SIZES
    assert recipe.size % 32 == 0
    assert recipe.size <= max(192, side * 1.25)
    assert recipe.batch_size in (2, 4, 8, 16, 32)
    assert recipe.epochs >= 1
    assert recipe.warmup_steps >= 10
    steps = recipe.epochs * math.ceil(pictures / recipe.batch_size)
    if recipe.seconds > 40 * 60 * (1.5 if machine.cuda else 1.0):
        assert steps <= 2 * max(300, math.ceil(pictures / recipe.batch_size)), "longer only for the fewest steps"


def test_small_objects_make_the_input_larger_and_small_memory_the_batch_smaller() -> None:
    assert choose(DataFacts(500, 1400.0, 0.015), GPU).size == 768
    assert choose(DataFacts(500, 1400.0, 0.02), GPU).size == 640
    assert choose(DataFacts(500, 1400.0, 0.3), GPU).size == 512
    assert choose(DataFacts(500, 1400.0, 0.015), LAPTOP).size == 384
    assert choose(DataFacts(500, 200.0, 0.3), LAPTOP).size == 192
    assert choose(DataFacts(500, 1400.0, 0.3), Machine(True, 8, 8 << 30)).batch_size == 4
    assert choose(DataFacts(500, 1400.0, 0.3), Machine(True, 8, 80 << 30)).batch_size == 32


def test_measured_times_and_the_wish_decide_the_epochs() -> None:
    slow = choose(PHOTOS, LAPTOP, picture_seconds=lambda _: 1.0)
    fast = choose(PHOTOS, LAPTOP, picture_seconds=lambda _: 0.01)
    assert slow.epochs == 24, "the fewest steps, 300"
    assert fast.epochs == 300
    assert choose(PHOTOS, LAPTOP, minutes=30).epochs < choose(PHOTOS, LAPTOP, minutes=60).epochs
    assert estimated_seconds(Machine(False, 4, 0))(320) < estimated_seconds(LAPTOP)(320)
    with pytest.raises(ValueError, match="no pictures"):
        choose(DataFacts(0, 100.0, 1.0), LAPTOP)


def test_facts_of_a_data_set(tmp_path) -> None:
    rows = [annotation(n, n) for n in (1, 2, 3)]
    facts = DataFacts.of(load_datasets([coco_folder(tmp_path / "a", 4, rows)], "train"))
    assert facts.pictures == 4
    assert facts.longest_side == 40.0
    assert facts.small_object == pytest.approx(math.sqrt(26 * 24) / 40)


def test_given_settings_stand_and_the_others_are_chosen_to_go_with_them() -> None:
    free = choose(PHOTOS, LAPTOP)
    recipe = choose(PHOTOS, LAPTOP, given={"size": 64, "batch_size": 5})
    assert (recipe.size, recipe.batch_size) == (64, 5)
    assert set(recipe.settings()) == {"epochs", "learning_rate", "warmup_steps", "freeze_stages", "patience"}
    assert "--size" not in recipe.text()
    assert len(recipe.reasons) == 4
    assert recipe.epochs > free.epochs, "smaller pictures take less time"
    assert choose(PHOTOS, LAPTOP, given={"epochs": 2}).seconds < free.seconds
    assert choose(PHOTOS, LAPTOP, given={"epochs": 2}).warmup_steps == 10


def test_stages_are_frozen_on_a_cpu_where_that_is_possible_and_save_time() -> None:
    frozen, whole = choose(PHOTOS, LAPTOP), choose(PHOTOS, LAPTOP, freezable=False)
    assert (frozen.freeze_stages, whole.freeze_stages) == (2, 0)
    assert frozen.epochs > whole.epochs
    assert frozen.seconds / frozen.epochs < 0.8 * whole.seconds / whole.epochs
    assert not any("frozen" in reason for reason in whole.reasons)
    assert choose(PHOTOS, GPU).freeze_stages == 0
    given = choose(PHOTOS, LAPTOP, given={"freeze_stages": 0})
    assert (given.freeze_stages, given.epochs) == (0, whole.epochs)


@pytest.mark.parametrize(("epochs", "eval_every", "patience"), [(219, 5, 15), (32, 5, 5), (1, 5, 5), (60, 0, 0)])
def test_patience_is_a_third_of_the_evaluations(epochs: int, eval_every: int, patience: int) -> None:
    recipe = choose(PHOTOS, LAPTOP, given={"epochs": epochs}, eval_every=eval_every)
    assert recipe.patience == patience
    assert any("ends early" in reason for reason in recipe.reasons) == (patience > 0)
    assert choose(PHOTOS, LAPTOP, given={"patience": 0}, eval_every=5).settings().get("patience") is None


@pytest.mark.parametrize(("processes", "batch"), [(2, 32), (3, 33), (64, 64)])
def test_processes_share_the_batch(processes: int, batch: int) -> None:
    facts, large = DataFacts(5000, 640.0, 0.2), Machine(True, 16, 80 << 30)
    assert choose(facts, large, processes=processes).batch_size == batch
    assert choose(facts, large, given={"batch_size": 7}, processes=processes).batch_size == 7


@pytest.mark.parametrize("layout", layout_folders.LAYOUTS)
@pytest.mark.parametrize("classes", [(), ("dog",)])
@pytest.mark.parametrize("splits", [("train", "val"), ("train",)])
def test_labels_alone_tell_what_the_loaded_data_would(tmp_path, layout, classes, splits) -> None:
    root = layout_folders.write(tmp_path / "a", layout, splits)
    make_val = "val" not in splits
    loaded = DataFacts.of(load_datasets([root], "train", classes=classes or None, make_val=make_val))
    read = DataFacts.read([root], classes=classes, make_val=make_val)
    assert (read.pictures, read.longest_side) == (loaded.pictures, loaded.longest_side)
    assert read.small_object == pytest.approx(loaded.small_object, rel=1e-6)


def test_labels_that_make_no_sense_are_passed_over(tmp_path) -> None:
    rows = [annotation(1), annotation(2, bbox="wide"), annotation(3, bbox=[0, 0, float("nan"), 3]), annotation(4, 9)]
    rows += [annotation(5, category=7), annotation(6, bbox=None, segmentation=None), annotation(7, iscrowd=1), 8]
    rows += [annotation(9, [1]), annotation(10, 1, [1]), annotation(11, bbox=None, segmentation=[TRIANGLE])]
    root = coco_folder(tmp_path / "a", 2, rows)
    content = json.loads((root / "train.json").read_text())
    content["images"] += [5, {"id": [3]}, {"id": 4, "file_name": "none.png"}, {"id": 5, "file_name": "x" * 5000}]
    content["images"] += [{"id": 6, "file_name": "1.png"}, {"id": 7, "file_name": "2.png", "width": 0, "height": "9"}]
    (root / "train.json").write_text(json.dumps(content))
    facts = DataFacts.read([root])
    assert facts.longest_side == 40.0
    assert facts.small_object == pytest.approx(math.sqrt(26 * 22) / 40, rel=0.1)
    (root / "train.json").write_text(json.dumps(content | {"images": [5], "annotations": []}))
    assert choose(DataFacts.read([root]), LAPTOP).size == 320, "nothing is known of the pictures' sizes"
