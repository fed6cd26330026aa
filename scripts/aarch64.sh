#!/usr/bin/env bash
# Builds for aarch64 on an x86-64 machine and runs what was built, under qemu: the C++ tests, tests of the operations in
# Python and inside ONNX Runtime, and the prediction on the sample photograph with the real onnxruntime of aarch64, the
# newest and that of JetPack 6, whose instances must be those that this machine finds.
#
#   scripts/aarch64.sh                 some five minutes of processor time, most of it emulation
#   PYTHON=python3.12 scripts/aarch64.sh
#
# Needs a Debian with network, and a PYTHON that has pip and an installed centermask with onnxruntime (to compare with);
# cmake and ninja. What is missing of Debian's g++-aarch64-linux-gnu, qemu-user-static and mmdebstrap is installed, if
# root runs this. It ends with 77 where these needs cannot be had, with 1 where something is wrong.
#   OUT=build/aarch64     everything that is made; the root and the wheels are kept and used again
#   SUITE=bookworm        Debian's release that the root is of; that of this machine unless given, as the compiler's is
#   MIRROR=http://...     where it comes from
#   JOBS=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p "${OUT:-build/aarch64}"
out=$(realpath "${OUT:-build/aarch64}")
jobs=${JOBS:-$(nproc)}
python=${PYTHON:-python3}
# shellcheck source=/dev/null
suite=${SUITE:-$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")}
mirror=${MIRROR:-http://deb.debian.org/debian}
root=$out/root-$suite
clock=$SECONDS

impossible() { printf 'left out: %s\n' "$*"; exit 77; }
done_with() { printf '%4d s  %s\n' $((SECONDS - clock)) "$*"; clock=$SECONDS; }

# ---- what it needs ----
packages=()
command -v aarch64-linux-gnu-g++ >/dev/null || packages+=(g++-aarch64-linux-gnu libc6-dev-arm64-cross)
command -v qemu-aarch64-static >/dev/null || packages+=(qemu-user-static)
command -v mmdebstrap >/dev/null || [ -d "$root" ] || packages+=(mmdebstrap)
if [ ${#packages[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then impossible "needs ${packages[*]}"; fi
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$out/apt.log" 2>&1 ||
    { tail -n 3 "$out/apt.log"; impossible "apt-get cannot install ${packages[*]}"; }
fi
for tool in cmake ninja; do command -v "$tool" >/dev/null || impossible "needs $tool"; done
"$python" -c 'import centermask, onnxruntime' 2>/dev/null || impossible "$python has no centermask with onnxruntime"

if [ ! -d "$root" ]; then
  # Unpacked, not installed: nothing of it runs but Python.
  mmdebstrap --quiet --variant=extract --architectures=arm64 --include=python3,libpython3-dev,libstdc++6,libgomp1,zlib1g \
    "$suite" "$root.part" "$mirror" >"$out/root.log" 2>&1 ||
    { tail -n 3 "$out/root.log"; rm -rf "$root.part"; impossible "no root of Debian $suite for arm64 from $mirror"; }
  mv "$root.part" "$root"
fi
# qemu shows programs this machine's /proc/cpuinfo, in which onnxruntime looks for the cores of an ARM, one for each that
# /sys names. These are a Cortex-A78AE's words, the core of Jetson Orin.
mkdir -p "$root/proc"
last=$(sed 's/.*[-,]//' /sys/devices/system/cpu/possible)
for ((i = 0; i <= last; i++)); do
  printf 'processor\t: %d\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n' "$i"
  printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n'
done >"$root/proc/cpuinfo"

interpreter=$(find "$root/usr/bin" -name 'python3.*' -type f | sort -V | tail -n 1)
version=${interpreter##*python}
site=$out/site-$version
if [ ! -d "$site" ]; then
  "$python" -m pip install --quiet --target "$site.part" --only-binary=:all: --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_26_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --implementation cp --python-version "$version" onnxruntime numpy opencv-python-headless pybind11 \
    onnx pycocotools pytest hypothesis >"$out/pip.log" 2>&1 ||
    { tail -n 3 "$out/pip.log"; rm -rf "$site.part"; impossible "no wheels for aarch64 and Python $version"; }
  mv "$site.part" "$site"
fi

# The newest runtime that pip has for the Python of JetPack 6: one without DeformConv.
older=1.23.2
if [ ! -d "$out/onnxruntime-$older-$version" ]; then
  "$python" -m pip install --quiet --no-deps --target "$out/onnxruntime-$older-$version" --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --implementation cp --python-version "$version" \
    "onnxruntime==$older" >>"$out/pip.log" 2>&1 || { tail -n 3 "$out/pip.log"; impossible "no onnxruntime $older"; }
fi

# The aarch64 Python as a program of this machine.
cat >"$out/python" <<END
#!/bin/sh
export PYTHONHOME='$root/usr' PYTHONPATH="\${FIRST:+\$FIRST:}$out/package:$site" PYTHONDONTWRITEBYTECODE=1
exec qemu-aarch64-static -L '$root' '$interpreter' "\$@"
END
chmod +x "$out/python"
done_with "Debian $suite, Python $version, onnxruntime $("$out/python" -c 'import onnxruntime; print(onnxruntime.__version__)') for aarch64"

# ---- build ----
# Debian's Python headers include their machine's part as <aarch64-linux-gnu/...>, hence the folder above both.
cmake -S . -B "$out/build" -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake "-DCENTERMASK_AARCH64_ROOT=$root" \
  "-DCMAKE_CXX_FLAGS=-idirafter $root/usr/include" "-DPython_EXECUTABLE=$out/python" -DCENTERMASK_WERROR=ON \
  -DCENTERMASK_EXAMPLES=ON -DCENTERMASK_TESTS=ON -DCENTERMASK_CUDA_HEADERS=OFF >"$out/configure.log" 2>&1 || { tail -n 20 "$out/configure.log"; exit 1; }
cmake --build "$out/build" --parallel "$jobs" >"$out/build.log" || { tail -n 40 "$out/build.log"; exit 1; }
rm -rf "$out/package"
mkdir -p "$out/package"
cp -r python/centermask "$out/package/"
find "$out/package" \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
cp "$out"/build/_core*.so "$out/build/libcentermask_ort.so" "$out/package/centermask/"
done_with "built with $(aarch64-linux-gnu-g++ -dumpfullversion), warnings as errors"

# ---- run ----
ctest --test-dir "$out/build" --output-on-failure --parallel "$jobs" >"$out/ctest.log" ||
  { tail -n 60 "$out/ctest.log"; exit 1; }
done_with "C++: $(grep 'tests passed' "$out/ctest.log")"

# Left out: what starts another Python, which would be no program of this machine, and what takes a minute by itself when
# emulated. Two at a time, the long ones first.
tests=(deform_conv2d ort_ops masks decode rle preprocess gather binding_arrays)
failed=0
# shellcheck disable=SC2016  # the inner shell's variables
printf '%s\0' "${tests[@]}" | xargs -0 -I '{}' -P "$jobs" bash -c '
  "$1/python" -m pytest -q -p no:cacheprovider "tests/python/test_$2.py" \
    -k "not memory_is_bounded and not larger_than_a_block and not ends_quietly and not stays_loaded" >"$1/test_$2.log" 2>&1 ||
    { printf "FAILED: %s\n" "$2"; tail -n 40 "$1/test_$2.log"; exit 1; }' \
  pytest "$out" '{}' || failed=1
[ "$failed" -eq 0 ] || exit 1
passed=$(cat "$out"/test_*.log | sed -n 's/^\([0-9]*\) passed.*/\1/p' | awk '{ n += $1 } END { print n }')
done_with "Python: $passed tests passed"

# More than what is worth showing, so that there is something to compare.
sample=python/centermask/models/sample.jpg
predict() { "$1" -m centermask.cli predict "$sample" --score 0.06 --threads 2 --out "$out/$2" --coco "$out/$2.json"; }
segment() {
  qemu-aarch64-static -L "$root" "$out/build/cpp/examples/centermask_segment" python/centermask/models/default.onnx "$out/sample.ppm" \
    --onnxruntime "$(find "$1" -name 'libonnxruntime.so*')" --score 0.06 --threads 2 --coco "$out/$2.json"
}
same() { "$python" tests/python/compare_results.py "$out/x86_64.json" "$out/$1.json" --score 0.06; }
predict "$python" x86_64 >"$out/predict.log"
predict "$out/python" aarch64 >>"$out/predict.log"
same aarch64
FIRST=$out/onnxruntime-$older-$version predict "$out/python" "aarch64-$older" >>"$out/predict.log"
same "aarch64-$older"
done_with "Python: the same instances on aarch64 as here, by the newest onnxruntime and $older"
"$python" -c 'import cv2, sys; assert cv2.imwrite(sys.argv[2], cv2.imread(sys.argv[1]))' "$sample" "$out/sample.ppm"
for runtime in "$site" "$out/onnxruntime-$older-$version"; do
  segment "$runtime" "c++-$(basename "$runtime")" >>"$out/predict.log"
  same "c++-$(basename "$runtime")"
done
done_with "C++: the same instances, by the same two"
