"""The pages in a real browser: nothing is asked of any network, they fit a phone, and they are dark in the dark."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layout_folders
import pytest

from centermask.cli import main

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSER = next(
    filter(
        None,
        (os.environ.get("CENTERMASK_BROWSER"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    ),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH or in CENTERMASK_BROWSER")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds of page, with all that they can show."""
    folder = tmp_path_factory.mktemp("pages")
    root = layout_folders.write(folder / "a data set with a long name that has to be broken somewhere", "plain")
    document = json.loads((root / "train.json").read_text())
    document["annotations"].append(document["annotations"][0] | {"id": 900, "bbox": [0, 0, 5, 5]})
    document["annotations"].append(document["annotations"][1] | {"id": 901, "segmentation": []})
    (root / "train.json").write_text(json.dumps(document))
    found = {"validate": folder / "validate.html"}
    assert main(["validate", str(root), "--html", str(found["validate"])]) == 1

    if _can_evaluate():
        truth = json.loads((root / "val.json").read_text())
        results = [
            {key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.1 + n / 20}
            for n, row in enumerate(truth["annotations"])
        ]
        results.append(results[0] | {"bbox": [50, 60, 20, 10], "segmentation": [[50, 60, 70, 60, 70, 70, 50, 70]]})
        (folder / "found.json").write_text(json.dumps(results[1:]))
        found["eval"] = folder / "eval.html"
        assert main(["eval", str(folder / "found.json"), str(root), "--html", str(found["eval"])]) == 0
    return found


def _can_evaluate() -> bool:
    try:
        import PIL  # noqa: F401
        import pycocotools  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


SCREENS = {"phone": (360, 740), "desk": (1280, 900)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["validate", "eval"])
def test_pages(browser: Any, pages: dict[str, Path], name: str, screen: str, scheme: str) -> None:
    if name not in pages:
        pytest.skip("evaluating needs the extra `train`")
    width, height = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    outside = [url for url in asked if not url.startswith(("data:", "file:"))]
    assert not outside
    assert [url for url in asked if url.startswith("file:")] == [pages[name].as_uri()], "one file, and no other"
    assert not complaints
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.evaluate("document.images.length") >= 3
    # Nothing is wider than the screen but what scrolls by itself.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('p')).fontSize)")
    assert size >= 14
    ink, paper = page.evaluate(
        "['color', 'backgroundColor'].map(p => getComputedStyle(document.body)[p].match(/[0-9]+/g).map(Number))"
    )
    assert (sum(paper) < sum(ink)) == (scheme == "dark")
    assert abs(sum(paper) - sum(ink)) > 450, "well apart"
    if name == "eval":
        assert page.evaluate("document.querySelectorAll('svg polyline').length") >= 4
    if "CENTERMASK_SCREENSHOTS" in os.environ:
        page.screenshot(path=f"{os.environ['CENTERMASK_SCREENSHOTS']}/{name}-{screen}-{scheme}.png", full_page=True)
    context.close()
