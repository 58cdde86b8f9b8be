#!/usr/bin/env bash
# Installs Debian packages, builds the release preset with every test, and runs them all.
#   tests/run.sh [ctest arguments]      such as: tests/run.sh -R linear
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/install-deps.sh test
[ -f build/release/build.ninja ] || cmake --preset release >/dev/null
cmake --build --preset release
exec ctest --preset release --parallel "$(nproc)" "$@"
