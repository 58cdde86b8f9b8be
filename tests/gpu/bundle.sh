#!/usr/bin/env bash
# Collects what tests/gpu/check needs on a machine that has a GPU and none of our packages.
#   tests/gpu/bundle.sh FOLDER
# Builds the preset cuda's GPU tests and copies them to FOLDER with the shared libraries that a bare machine
# lacks; cuBLASLt, NCCL and the driver are the machine's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?"usage: tests/gpu/bundle.sh FOLDER"}
[ -f build/cuda/build.ninja ] || cmake --preset cuda >/dev/null
cmake --build --preset cuda --target gpu_tests
rm -rf "$folder"
mkdir -p "$folder/lib"
cp build/cuda/gpu_tests/* "$folder/"
cp tests/gpu/check "$folder/"
mkdir -p "$folder/tests/golden"
cp -r tests/golden/model "$folder/tests/golden/"
for binary in "$folder"/gpu_*_test; do ldd "$binary"; done |
  awk '$3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libcuda|libcudart|libcublas|libcublasLt|libnccl)\.so' |
  xargs -r cp -t "$folder/lib"
du -sh "$folder"
