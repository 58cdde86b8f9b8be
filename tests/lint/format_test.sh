#!/usr/bin/env bash
# Every C++ file is as clang-format 14 (pinned: versions differ) would write it.
set -euo pipefail
cd "${1:-.}"
git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs --no-run-if-empty clang-format-14 --dry-run -Werror
