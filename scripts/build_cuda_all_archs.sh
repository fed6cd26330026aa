#!/usr/bin/env bash
# Compiles every CUDA source for every card that the nvcc at hand knows, and looks at what came out: registers, local
# memory and spills of each kernel, and whether the matrix kernels use the tensor cores.
#
#   scripts/build_cuda_all_archs.sh [ARCHITECTURE...]     such as 80 90; without any, the list of a normal build
#
# Fails where a source does not compile, a kernel spills registers, or deform_conv2d has no tensor core instruction on sm_80 or
# newer. Needs nvcc and cmake; cuobjdump (of the CUDA toolkit, or of the Python package triton) for the last. No GPU.
#   OUT=build/all_archs   logs, objects, and kernels.txt with one line a kernel
#   JOBS=2                compilers at a time
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-build/all_archs}
jobs=${JOBS:-$(nproc)}
mkdir -p "$out"
rm -f "$out"/*.log "$out"/*.o "$out/kernels.txt"

# The lists that the build itself uses.
mapfile -t sources < <(sed -n '/^set(CENTERMASK_CUDA_SOURCES/,/^)/p' CMakeLists.txt | grep -o 'cpp/.*\.cu')
version=$(nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
export MAJOR=${version%%.*}
architectures=("$@")
if [ ${#architectures[@]} -eq 0 ]; then
  # shellcheck disable=SC2016  # CMake's variable
  printf 'include("%s/cmake/CentermaskCudaArchitectures.cmake")\ncentermask_cuda_architectures(%s list)\nmessage("${list}")\n' \
    "$PWD" "$version" >"$out/ask.cmake"
  mapfile -t architectures < <(cmake -P "$out/ask.cmake" 2>&1 | tr ';' '\n' | sed 's/-real//')
fi
cuobjdump=${CUOBJDUMP:-$(command -v cuobjdump || true)}
if [ -z "$cuobjdump" ]; then
  cuobjdump=$(python3 -c 'import importlib.util as u, pathlib as p
spec = u.find_spec("triton")
print(next(iter(p.Path(spec.origin).parent.rglob("cuobjdump")), "") if spec else "")' 2>/dev/null || true)
fi

printf 'CUDA %s: %d sources for sm_%s\n' "$version" "${#sources[@]}" "$(IFS=,; printf '%s' "${architectures[*]}")"
object_name() { printf '%s.sm_%s' "$(printf '%s' "${1#cpp/src/}" | tr / - | sed 's/\.cu$//')" "$2"; }
status=0
# shellcheck disable=SC2016  # the inner shell's variables
for architecture in "${architectures[@]}"; do
  for source in "${sources[@]}" cpp/src/cuda/devices.cu; do
    printf '%s\0%s\0%s\0' "$architecture" "$source" "$out/$(object_name "$source" "$architecture")"
  done
done | xargs -0 -n 3 -P "$jobs" bash -c '
  code=$1
  flags=
  if [ "$1" = 90 ] && [ "$MAJOR" -ge 12 ]; then code=90a flags=-DCENTERMASK_SM90A=1; fi  # as CentermaskCuda.cmake does
  nvcc -std=c++17 -O3 --expt-relaxed-constexpr -gencode "arch=compute_$code,code=sm_$code" $flags -Xptxas -v \
    -Icpp/include -Icpp/src -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas,-Wno-class-memaccess -c "$2" -o "$3.o" >"$3.log" 2>&1 ||
    { printf "FAILED: %s for sm_%s\n" "$2" "$1"; tail -n 20 "$3.log"; exit 1; }' compile || status=1

# ptxas -v says, for each kernel: its name, then stack and spills, then registers.
for log in "$out"/*.log; do
  awk -v file="$(basename "$log" .log)" '
    /Compiling entry function/ { split($0, quoted, "\047"); kernel = quoted[2]; card = quoted[4]; sub(/a$/, "", card) }
    /bytes stack frame/ { stack = $1; spills = $5 + $9 }
    /Used [0-9]+ registers/ && kernel != "" {
      match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
      shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH - 11) : 0
      printf "%s %s %d %d %d %d %s\n", card, file, registers, stack, spills, shared, kernel
      kernel = ""
    }' "$log"
done | c++filt >"$out/kernels.txt"

printf '\n%-8s %8s %14s %13s %8s\n' card kernels 'registers max' 'stack bytes' spilling
for architecture in "${architectures[@]}"; do
  awk -v card="sm_$architecture" '$1 == card {
      ++kernels; if ($3 > registers) registers = $3; stack += $4; spilling += $5 > 0
    } END { printf "%-8s %8d %14d %13d %8d\n", card, kernels, registers, stack, spilling }' "$out/kernels.txt"
done
if awk '$5 > 0' "$out/kernels.txt" | grep -q .; then
  printf '\nFAILED: these kernels spill (card, object, registers, stack, spilled bytes, shared, name):\n'
  awk '$5 > 0' "$out/kernels.txt"
  status=1
fi
if awk '$4 > 0 && $5 == 0' "$out/kernels.txt" | grep -q .; then
  printf '\nkernels with local memory, without spills:\n'
  awk '$4 > 0 && $5 == 0' "$out/kernels.txt" | cut -c1-200
fi

printf '\n'
if [ -z "$cuobjdump" ]; then
  printf 'tensor cores: not looked at, there is no cuobjdump\n'
else
  for object in "$out"/deform_conv2d-*.o; do
    card=${object##*.sm_}
    card=${card%.o}
    count=$("$cuobjdump" -sass "$object" 2>/dev/null | grep -cE 'HMMA|HGMMA' || true)
    printf '%-36s %6d tensor core instructions\n' "$(basename "$object" .o)" "$count"
    if [ "$card" -ge 80 ] && [ "$count" -eq 0 ]; then
      printf 'FAILED: no tensor core instruction\n'
      status=1
    fi
  done
fi
exit "$status"
