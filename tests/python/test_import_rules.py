"""Who may import whom, and that prediction lives without what only training needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import centermask

PACKAGE = Path(centermask.__file__).parent
THIRD_PARTY_OF_INFERENCE = {"numpy", "cv2"}

# What each module of inference may import from the package:
# cli -> predictor -> {preprocess, session, instances} -> ops -> _core.
INFERENCE = {
    "config": set(),
    "_arrays": set(),
    "_cuda": {"_core", "_arrays"},
    "_ops_cuda": {"_core", "_cuda"},
    "_ops_decode": {"_core", "_arrays", "_cuda", "_ops_cuda"},
    "_ops_deform": {"_core", "_arrays", "_cuda", "_ops_cuda"},
    "_ops_masks": {"_core", "_arrays", "_cuda", "_ops_cuda", "_ops_rle"},
    "_ops_rle": {"_core", "_arrays"},
    "ops": {"_ops_decode", "_ops_deform", "_ops_masks", "_ops_rle"},
    "files": set(),
    "wording": set(),
    "_image_file": set(),
    "metadata": {"config"},
    "preprocess": {"config", "ops", "_image_file"},
    "ort": {"_core"},
    "session": {"metadata", "ort"},
    "draw": {"instances"},  # for type checking alone
    "instances": {"ops", "draw", "files", "preprocess"},
    "predictor": {"ops", "instances", "metadata", "preprocess", "session"},
    "label_files": {"files", "instances", "metadata"},
    "predict_files": {"files", "instances", "label_files", "metadata", "predictor", "preprocess", "wording"},
    "benchmark": {"predictor", "preprocess"},
    "webpage": set(),
    "doctor": {"predictor", "_core", "ort"},
}
# Imported inside functions, each for a feature that says what to install when it is missing.
LAZY_THIRD_PARTY = {
    "instances": {"supervision", "PIL"},
    "session": {"onnxruntime"},
    "doctor": {"onnxruntime"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether that happens when the file itself is imported."""
    tree = ast.parse(path.read_text())
    later = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(outer, ast.If) and isinstance(outer.test, ast.Name) and outer.test.id == "TYPE_CHECKING")
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in later
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (
                    PACKAGE.parent / (whole.replace(".", "/") + ".py")
                ).is_file() or whole == "centermask._core"
                yield (whole if is_module else str(node.module)), id(node) not in later


def of_package(name: str) -> str | None:
    return name.removeprefix("centermask.") if name.startswith("centermask.") else None


@pytest.mark.parametrize("module", [name for name in INFERENCE if (PACKAGE / f"{name}.py").is_file()])
def test_inference_modules_import_only_what_the_design_allows(module: str) -> None:
    for name, _ in imports(PACKAGE / f"{module}.py"):
        inner = of_package(name)
        if inner is not None:
            assert inner in INFERENCE[module], f"{module} imports {name}"
        elif name != "centermask" and name.partition(".")[0] not in sys.stdlib_module_names:
            allowed = THIRD_PARTY_OF_INFERENCE | LAZY_THIRD_PARTY.get(module, set())
            assert name.partition(".")[0] in allowed, f"{module} imports {name}"


def test_every_module_at_the_top_has_a_rule() -> None:
    others = {"__init__", "cli", "train_cli", "coco", "coco_boundary"}
    unknown = {path.stem for path in PACKAGE.glob("*.py")} - set(INFERENCE) - others
    assert not unknown, f"add a rule for {unknown}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("nn/*.py")), ids=lambda path: path.stem)
def test_nn_knows_neither_training_nor_export_nor_inference(path: Path) -> None:
    for name, _ in imports(path):
        inner = of_package(name)
        assert (
            inner is None
            or inner.partition(".")[0] in {"nn", "ops", "config", "_core", "_cuda"}
            or inner.startswith("_ops")
        ), name


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("training/*.py")), ids=lambda path: path.stem)
def test_training_does_not_know_export(path: Path) -> None:
    assert not [name for name, _ in imports(path) if name.startswith("centermask.export")]


@pytest.mark.parametrize("folder", ["nn", "training", "export", "convert"])
def test_only_the_command_line_reaches_into_training_and_export(folder: str) -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem not in ("cli", "train_cli"):
            assert not [name for name, _ in imports(path) if name.startswith(f"centermask.{folder}")], path


def test_the_command_line_imports_nothing_heavy_before_it_runs() -> None:
    eager = {name for name, at_import in imports(PACKAGE / "cli.py") if at_import}
    assert {name for name in eager if name.partition(".")[0] not in sys.stdlib_module_names} <= {
        "centermask",
        "centermask.wording",  # a line of text
    }


BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name.partition(".")[0])
sys.meta_path.insert(0, Blocker())
"""
TRAINING_PACKAGES = ("torch", "torchvision", "timm", "lightning", "pycocotools", "onnx", "onnxscript", "PIL", "tqdm")


def run_without(blocked: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_prediction_works_without_any_training_package(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    import tiny_model

    model = tiny_model.write(tmp_path / "tiny.onnx")
    code = f"""
import centermask, numpy as np
from centermask.cli import main
image = np.zeros((64, 64, 3), np.uint8)
image[16:48, 16:48, 2] = 255
result = centermask.Predictor({str(model)!r})(image)
result.draw()
assert main(["predict", "-m", {str(model)!r}, "-o", {str(tmp_path / "out")!r}]) == 0
assert main(["doctor"]) == 0
"""
    done = run_without(TRAINING_PACKAGES, code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["eval", "m.onnx", "data"], ["export", "a.pt", "b.onnx"], ["train", "data"]])
def test_without_training_packages_their_commands_say_what_to_install(command: list[str]) -> None:
    done = run_without(TRAINING_PACKAGES, f"from centermask.cli import main\nsys.exit(main({command!r}))")
    assert done.returncode == 2
    assert "pip install 'centermask[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_onnxruntime_the_import_works_and_use_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    code = f"""
import centermask
from centermask import Instances, ops
assert len(Instances.empty((4, 4), ["a"])) == 0
try:
    centermask.Predictor({str(tmp_path / "m.onnx")!r})
except ImportError as error:
    print(error)
"""
    done = run_without(("onnxruntime",), code)
    assert done.returncode == 0, done.stderr
    assert "pip install 'centermask[cpu]'" in done.stdout
    assert "pip install 'centermask[gpu]'" in done.stdout


def test_importing_the_package_loads_nothing_but_itself() -> None:
    code = "import centermask\nprint(sorted(set(sys.modules) & {'numpy', 'cv2', 'torch', 'onnxruntime'}))"
    done = run_without((), code)
    assert done.stdout.strip() == "[]", done.stderr
