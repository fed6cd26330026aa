#!/usr/bin/env bash
# Compares cpp/bindings/onnxruntime/api.h with ONNX Runtime's own header, which Debian packages (no other package manager
# has it): the place and type of each function of the C API that is used, and the layout of OrtCustomOp.
#
#   scripts/check_ort_headers.sh [FOLDER]     a folder that holds onnxruntime_c_api.h; without, Debian's is fetched
#
# Needs g++ (or CXX); to fetch: curl, xz and dpkg-deb.
#   MIRROR=http://deb.debian.org/debian  SUITE=trixie
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-}
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
if [ -z "$folder" ]; then
  mirror=${MIRROR:-http://deb.debian.org/debian}
  suite=${SUITE:-trixie}
  curl --fail --silent --show-error --location "$mirror/dists/$suite/main/binary-amd64/Packages.xz" |
    xz -dc >"$temporary/packages"
  entry=$(awk -v RS= '/^Package: libonnxruntime-dev\n/' "$temporary/packages")
  file=$(sed -n 's/^Filename: //p' <<<"$entry")
  sum=$(sed -n 's/^SHA256: //p' <<<"$entry")
  [ -n "$file" ] || { printf '%s has no libonnxruntime-dev\n' "$suite" >&2; exit 2; }
  curl --fail --silent --show-error --location "$mirror/$file" -o "$temporary/headers.deb"
  printf '%s  %s\n' "$sum" "$temporary/headers.deb" | sha256sum --check --quiet
  dpkg-deb -x "$temporary/headers.deb" "$temporary/headers"
  folder=$(dirname "$(find "$temporary/headers" -name onnxruntime_c_api.h | head -n 1)")
fi
version=$(sed -n 's/^#define ORT_API_VERSION \([0-9]*\).*/\1/p' "$folder/onnxruntime_c_api.h")
"${CXX:-g++}" -std=c++17 -fsyntax-only -Wall -Wextra -Werror -isystem "$folder" \
  cpp/bindings/onnxruntime/check_headers.cc
printf 'api.h agrees with the header of API version %s\n' "$version"
