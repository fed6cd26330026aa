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


def configure_with_cuda(build: Path, compiler: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    settings = ["-DCENTERMASK_CUDA=ON", "-DCENTERMASK_PYTHON=OFF", f"-DCMAKE_CUDA_COMPILER={compiler}"]
    command = [cmake, "-S", ROOT, "-B", build, *settings]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_asking_for_cuda_is_never_answered_with_a_cpu_build(tmp_path: Path) -> None:
    done = configure_with_cuda(tmp_path / "absent", "NOTFOUND")
    assert done.returncode != 0
    assert "CENTERMASK_CUDA=ON needs nvcc, and none was found" in done.stderr
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho Cuda compilation tools, release 11.2, V11.2.67\n")
    old.chmod(0o755)
    done = configure_with_cuda(tmp_path / "old", str(old))
    assert done.returncode != 0
    assert "needs CUDA 11.4 or newer, and nvcc is 11.2" in " ".join(done.stderr.split())


def test_cuda_is_configured_where_there_is_a_compiler(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    done = configure_with_cuda(tmp_path / "build", nvcc)
    assert done.returncode == 0, done.stderr
    assert re.search(r"centermask: CUDA \d+\.\d+\S* for .*80-real.*87.*90", done.stdout)


@pytest.mark.parametrize(
    ("version", "architectures"),
    [
        ("11.4", "72-real;75-real;80-real;86-real;87"),  # JetPack 5
        ("12.6", "72-real;75-real;80-real;86-real;87-real;89-real;90"),  # JetPack 6
        ("13.0", "75-real;80-real;86-real;87-real;89-real;90;110-real"),
    ],
)
def test_cards_by_version_of_nvcc(version: str, architectures: str, tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/CentermaskCudaArchitectures.cmake")\n'
        f'centermask_cuda_architectures({version} cards)\nmessage("${{cards}}")\n'
    )
    done = subprocess.run([cmake, "-P", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == architectures


def test_the_build_describes_itself() -> None:
    info = _core.build_info()
    assert re.match(r"(GCC|Clang) \d+", info["compiler"])
    assert bool(info["cuda"]) == bool(info["cuda_architectures"])
    found = _core.cuda_devices()
    # Either there is a device, or a reason why there is none; asking fails on no machine.
    assert bool(found["devices"]) != bool(found["problem"])
    if not info["cuda"]:
        assert found["problem"] == "built without CUDA"
    for device in found["devices"]:
        assert device["compute_capability"] >= 50
        assert device["memory_bytes"] > 2**28
