"""What a run chooses by itself."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("PIL")

from coco_folders import annotation, coco_folder

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
    assert "about" in recipe.text()
    assert "--size 320" in recipe.text()
    assert len(recipe.reasons) == 3


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
    assert fast.epochs == 150
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
