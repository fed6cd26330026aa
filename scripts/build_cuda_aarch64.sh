#!/usr/bin/env bash
# Cross-compiles the library with its CUDA half for aarch64 (Jetson) on an x86-64 machine, and runs what runs without a
# GPU under qemu: the CPU tests, and a CUDA program as far as "no CUDA device". (scripts/aarch64.sh runs more of the CPU
# half: Python, ONNX Runtime, a whole prediction.)
#
#   scripts/build_cuda_aarch64.sh
#
# Needs nvcc, cmake, ninja, pip, and Debian's g++-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static. The CUDA
# run-time library for aarch64 comes from NVIDIA's wheel of nvcc's version, by pip; or name a folder that holds
# libcudart_static.a in CUDART.
#   OUT=build/aarch64       everything that is made
#   ARCHITECTURES="87 110"  instead of the Jetsons that nvcc knows: Xavier 72 (before CUDA 13), Orin 87, Thor 110 (from 13)
#   SKIP_TESTS=1            builds only
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-build/aarch64}
jobs=${JOBS:-$(nproc)}
for tool in nvcc cmake ninja aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v "$tool" >/dev/null || { printf 'needs %s\n' "$tool" >&2; exit 2; }
done
version=$(nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
major=${version%%.*}
if [ -n "${ARCHITECTURES:-}" ]; then
  read -ra architectures <<<"$ARCHITECTURES"
elif [ "$major" -ge 13 ]; then
  architectures=(87 110)
else
  architectures=(72 87)
fi
mkdir -p "$out/cuda"

cudart=${CUDART:-}
if [ -z "$cudart" ]; then
  package=nvidia-cuda-runtime
  [ "$major" -ge 13 ] || package=nvidia-cuda-runtime-cu$major
  if [ -z "$(find "$out/wheel" -name libcudart_static.a 2>/dev/null)" ]; then
    python3 -m pip install --quiet --no-deps --only-binary=:all: --platform manylinux2014_aarch64 \
      --platform manylinux_2_28_aarch64 --target "$out/wheel" "$package==$version.*"
  fi
  cudart=$(dirname "$(find "$out/wheel" -name libcudart_static.a | head -n 1)")
fi
printf 'CUDA %s, sm_%s, %s, cudart of %s\n' "$version" "$(IFS=,; printf '%s' "${architectures[*]}")" \
  "$(aarch64-linux-gnu-g++ --version | head -n 1)" "$cudart"

# The CPU half and its tests.
cmake -S . -B "$out/cpu" -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DCENTERMASK_PYTHON=OFF -DCENTERMASK_ORT=OFF \
  -DCENTERMASK_TESTS=ON -DCENTERMASK_CUDA_HEADERS=OFF >"$out/configure.log"
cmake --build "$out/cpu" --parallel "$jobs" >"$out/build.log"
printf 'CPU half built\n'

# The CUDA half. The headers of the x86 toolkit serve both.
include=$(dirname "$(find -L "$(dirname "$(find -L /usr/local/cuda "${CUDA_HOME:-/usr/local/cuda}" -name nvcc -path '*bin*' | head -n 1)")/.." \
  -name cuda_fp16.h -not -path '*cccl*' | head -n 1)")
mapfile -t sources < <(sed -n '/^set(CENTERMASK_CUDA_SOURCES/,/^)/p' CMakeLists.txt | grep -o 'cpp/.*\.cu')
generate=()
for architecture in "${architectures[@]}"; do
  generate+=(-gencode "arch=compute_$architecture,code=sm_$architecture")
done
# shellcheck disable=SC2016  # the inner shell's variables
printf '%s\0' "${sources[@]}" cpp/src/cuda/devices.cu | xargs -0 -I '{}' -P "$jobs" bash -c '
  source=$1 include=$2 folder=$3
  shift 3
  object=$folder/$(printf "%s" "${source#cpp/src/}" | tr / -).o
  nvcc -std=c++17 -O3 --expt-relaxed-constexpr -ccbin aarch64-linux-gnu-g++ "$@" -I"$include" -I"$include/cccl" \
    -Icpp/include -Icpp/src -Xcompiler=-fPIC,-Wall,-Wextra,-Wno-unknown-pragmas,-Wno-class-memaccess \
    -c "$source" -o "$object" >"$object.log" 2>&1 || { printf "FAILED: %s\n" "$source"; cat "$object.log"; exit 255; }' \
  compile '{}' "$include" "$out/cuda" "${generate[@]}"
printf 'CUDA half built: %d objects\n' "$(find "$out/cuda" -name '*.o' | wc -l)"

# Programs of both, linked as a user's would be.
for test in tests/cpp/test_cuda_*.cc; do
  name=$(basename "$test" .cc)
  [ "$name" != test_cuda_emulator ] || continue
  aarch64-linux-gnu-g++ -std=c++17 -O1 -I"$include" -Icpp/include -Icpp/src -Itests/cpp "$test" "$out"/cuda/*.o \
    "$out/cpu/libcentermask.a" "$cudart/libcudart_static.a" -lpthread -ldl -lrt -o "$out/$name"
done
printf 'CUDA programs linked\n'

if [ -z "${SKIP_TESTS:-}" ]; then
  status=0
  for test in "$out"/test_cuda_*; do
    code=0
    said=$(qemu-aarch64-static -L /usr/aarch64-linux-gnu "$test") || code=$?
    printf '%s: %s\n' "$(basename "$test")" "$said"
    [ "$code" -eq 77 ] || status=1
  done
  ctest --test-dir "$out/cpu" --output-on-failure --parallel "$jobs"
  exit "$status"
fi
