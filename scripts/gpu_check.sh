#!/usr/bin/env bash
# On a machine with a GPU: builds with CUDA for its card, and checks and times what only a card can show.
#
#   scripts/gpu_check.sh [STEP...]       all steps, or some of: build test sanitize benchmark profile
#
#   build      core, extension and C++ tests, for the card's architecture, in build/gpu
#   test       the C++ tests on the card, then the Python tests that touch CUDA
#   sanitize   compute-sanitizer (memcheck, racecheck, initcheck) over the C++ tests
#   benchmark  benchmarks/gpu.py, and benchmarks/gpu_onnxruntime.py where onnx and onnxruntime-gpu are installed
#   profile    ncu over one kernel
#
# Needs nvcc, cmake, ninja and a python3 with numpy, opencv, pybind11, pytest, hypothesis and torch; installs nothing.
# From the environment:
#   OUT=build/gpu_check   where each step's log and results go
#   PYTHON=python3        the interpreter
#   ARCHITECTURES=90      instead of the card's
#   KERNEL=REGEX PROFILE_ARGUMENTS="..."   what `profile` looks at (see benchmarks/cuda_profile.py)
#   BENCHMARK_ARGUMENTS="..."              for benchmarks/gpu.py, such as --quick
# A failing step does not stop the others; the exit code is 1 if any failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

out=${OUT:-build/gpu_check}
build=build/gpu
python=${PYTHON:-python3}
mkdir -p "$out"
scripts=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
export PATH="$PATH:/usr/local/cuda/bin:$scripts"
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export CENTERMASK_REQUIRE_DEVICE=1  # here, a test that finds no card fails
jobs=$(nproc)
rows=()
failed=0

# step NAME SECONDS COMMAND...: runs it under a time limit, with its own log, and remembers how it went.
step() {
  local name=$1 limit=$2 log=$out/$1.log start=$SECONDS status result
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
  status=$?
  case $status in
    0) result=passed ;;
    124 | 137) result="FAILED (longer than $limit s)" ;;
    *) result="FAILED (exit code $status)" ;;
  esac
  if [ "$status" -ne 0 ]; then
    failed=1
    printf '\n== %s: %s ==\n' "$name" "$result"
    tail -n 40 "$log"
  fi
  rows+=("$(printf '%-24s %5d s  %-12s %s' "$name" $((SECONDS - start)) "$result" "$(note "$log")")")
}

# The one line of a log that says most.
note() {
  grep -E '^[0-9]+% tests passed|^=+ .*(passed|failed|error|no tests ran).* =+$|[0-9]+ (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY' \
    "$1" | tail -n 1 | tr -d '=' | cut -c1-90
}

device_tests() { find "$build/tests/cpp" -maxdepth 1 -name 'test_cuda_*_device' -type f -perm -u+x | sort; }

do_build() {
  local architectures=${ARCHITECTURES:-}
  if [ -z "$architectures" ]; then
    architectures=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
  fi
  # The emulated tests need no card: they are left out here.
  step configure 120 cmake -S . -B "$build" -G Ninja -DCENTERMASK_CUDA=ON -DCENTERMASK_TESTS=ON \
    -DCENTERMASK_CUDA_HEADERS=OFF -DPython_EXECUTABLE="$(command -v "$python")" \
    -DCMAKE_CUDA_ARCHITECTURES="$architectures" -DCMAKE_CUDA_FLAGS=-lineinfo
  step build 420 cmake --build "$build" --parallel "$jobs"
}

do_test() {
  step doctor 60 "$python" -m centermask.cli doctor
  step test-cpp 180 ctest --test-dir "$build" -L device --output-on-failure --parallel 4
  step test-python 300 "$python" -m pytest tests/python -q -k cuda -p no:cacheprovider --durations=10
}

# sanitize_one TOOL PROGRAM NAME: leaves NAME.log and its exit code in NAME.status.
sanitize_one() {
  timeout --kill-after=10 240 compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 "$2" >"$out/$3.log" 2>&1
  echo $? >"$out/$3.status"
}

# All tools over all tests, several at once: they mostly wait for the host.
do_sanitize() {
  local tool program name status result start=$SECONDS
  local -a programs names=()
  if ! command -v compute-sanitizer >/dev/null; then
    rows+=("sanitize                     -    left out: no compute-sanitizer")
    return
  fi
  mapfile -t programs < <(device_tests)
  for tool in memcheck racecheck initcheck; do
    for program in ${programs[@]+"${programs[@]}"}; do
      name=$tool-$(basename "$program" _device)
      while [ "$(jobs -rp | wc -l)" -ge 6 ]; do sleep 0.2; done
      sanitize_one "$tool" "$program" "$name" &
      names+=("$name")
    done
  done
  wait
  if [ ${#names[@]} -eq 0 ]; then
    failed=1
    rows+=("sanitize                     -    FAILED: no C++ tests in $build")
  fi
  for name in ${names[@]+"${names[@]}"}; do
    status=$(cat "$out/$name.status")
    rm "$out/$name.status"
    case $status in
      0) result=passed ;;
      124 | 137) result="FAILED (too long)" ;;
      *) result="FAILED ($status)" ;;
    esac
    if [ "$status" -ne 0 ]; then
      failed=1
      printf '\n== %s: %s ==\n' "$name" "$result"
      grep -v '^========= *$' "$out/$name.log" | head -n 25
    fi
    rows+=("$(printf '%-34s %-12s %s' "$name" "$result" "$(note "$out/$name.log")")")
  done
  rows+=("$(printf '%-24s %5d s' "sanitize, all together" $((SECONDS - start)))")
}

do_benchmark() {
  local -a arguments
  read -ra arguments <<<"${BENCHMARK_ARGUMENTS:-}"
  step benchmark 420 "$python" benchmarks/gpu.py --out "$out" ${arguments[@]+"${arguments[@]}"}
  tail -n 60 "$out/benchmark.log"
  if "$python" -c 'import onnx, onnxruntime as o; raise SystemExit("CUDAExecutionProvider" not in o.get_available_providers())' \
    2>/dev/null; then
    step benchmark-onnxruntime 240 "$python" benchmarks/gpu_onnxruntime.py --json "$out/onnxruntime.json"
  else
    rows+=("benchmark-onnxruntime        -    left out: no onnx or no onnxruntime-gpu")
  fi
}

do_profile() {
  local -a arguments
  if ! command -v ncu >/dev/null; then
    rows+=("profile                      -    left out: no ncu")
    return
  fi
  read -ra arguments <<<"${PROFILE_ARGUMENTS:-}"
  step profile 240 ncu --clock-control none --set full --import-source no --launch-skip 2 --launch-count 1 --kill yes \
    --kernel-name-base demangled --kernel-name "regex:${KERNEL:-forward_(ring|wgmma|mma)}" \
    "$python" benchmarks/cuda_profile.py ${arguments[@]+"${arguments[@]}"}
  grep -E 'Duration|Throughput|Registers Per|Achieved Occ|Theoretical Occ|Hit Rate|Est\. Speedup|Bank|Executed Ipc' \
    "$out/profile.log" | head -n 40
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build test sanitize benchmark profile)
for wanted in "${steps[@]}"; do
  case $wanted in
    build) do_build ;;
    test) do_test ;;
    sanitize) do_sanitize ;;
    benchmark) do_benchmark ;;
    profile) do_profile ;;
    *)
      printf 'unknown step: %s\n' "$wanted" >&2
      exit 2
      ;;
  esac
done

printf '\n== summary: %s ==\n' "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
printf '%s\n' "${rows[@]}" | tee "$out/summary.txt"
printf 'logs: %s\n' "$out"
exit "$failed"
