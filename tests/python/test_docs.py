"""The documents name what exists, and all of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from centermask import ops
from centermask.config import ModelConfig
from centermask.metadata import ModelInfo

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


def test_every_module_is_on_the_map() -> None:
    readme = (ROOT / "README.md").read_text()
    package = ROOT / "python" / "centermask"
    modules = {path.name for path in package.rglob("*.py") if not path.name.startswith("_")}
    assert not {name for name in modules if f"{name}`" not in readme}


def test_every_operation_is_described() -> None:
    text = (ROOT / "docs" / "ops.md").read_text()
    types = {"Centers", "Rle", "RleLike"}
    assert not {name for name in set(ops.__all__) - types if not re.search(rf"`?\b{name}\(", text)}


def test_the_contract_lists_exactly_the_metadata_that_is_written() -> None:
    written = ModelInfo.from_config(ModelConfig(class_names=("a",), category_ids=(1,))).to_metadata()
    text = (ROOT / "docs" / "model_contract.md").read_text()
    assert set(re.findall(r"`(centermask\.\w+)`", text)) == set(written)


def test_tables_say_what_the_files_say() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import figures
    finally:
        sys.path.pop(0)
    pages = [page for page in PAGES if figures.BLOCK.search(page.read_text())]
    assert {page.name for page in pages} == {"convergence.md", "deployment.md", "training.md"}
    stale = [page.name for page in pages if figures.renewed(page.read_text()) != page.read_text()]
    assert not stale, "python benchmarks/figures.py"
    names = re.findall(r"<!-- figures: ([\w-]+) -->", "".join(page.read_text() for page in pages))
    assert set(names) == set(figures.TABLES)
