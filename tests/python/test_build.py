"""What is built: nothing but the C++ runtime underneath, one version everywhere, and no silent build without CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import centermask
from centermask import _core

ROOT = Path(__file__).resolve().parents[2]
LIBC = {"libc", "libm", "libpthread", "librt", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}  # one from glibc 2.34 on
RUNTIME = LIBC | {"libstdc++", "libgcc_s"}


def needed_libraries(path: str) -> list[str]:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf (binutils) is not installed")
    done = subprocess.run([readelf, "--dynamic", "--wide", path], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.+?)\.so", done.stdout)


def test_the_extension_links_against_the_cpp_runtime_alone() -> None:
    needed = needed_libraries(_core.__file__)
    assert "libc" in needed  # the listing was understood
    # ASan and UBSan come with a sanitizer build of the extension, which is not what is shipped.
    assert set(needed) - {"libasan", "libubsan"} <= RUNTIME


def test_one_version_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    built = re.search(r"^project\(centermask VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert declared is not None
    assert built is not None
    assert {declared[1], built[1], _core.__version__, centermask.__version__} == {declared[1]}
    assert f"## {declared[1]}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("compiler", ["absent", "present"])
def test_asking_for_cuda_is_never_answered_with_a_cpu_build(compiler: str, tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    nvcc = shutil.which("nvcc")
    if compiler == "present" and nvcc is None:
        pytest.skip("there is no nvcc")
    cuda = "NOTFOUND" if compiler == "absent" else nvcc
    settings = ["-DCENTERMASK_CUDA=ON", "-DCENTERMASK_PYTHON=OFF", f"-DCMAKE_CUDA_COMPILER={cuda}"]
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path / "build", *settings],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    message = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert "CENTERMASK_CUDA=ON" in message
    assert ("needs nvcc" in message) == (compiler == "absent")
    assert "CPU kernels only" in message
