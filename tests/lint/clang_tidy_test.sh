#!/usr/bin/env bash
# clang-tidy with the list of .clang-tidy over the C++ sources that the working tree and the last commit
# changed (at most 12, so that a large change does not hold the tests up).
#   clang_tidy_test.sh SOURCE_DIR BUILD_DIR
set -euo pipefail
cd "$1"
base=$(git rev-parse --verify --quiet HEAD~1 || git rev-parse HEAD)
{ git diff --name-only --diff-filter=d "$base" -- '*.cc'; } | sort -u | head -n 12 |
  while read -r file; do
    # Only what this build compiles has an entry in the database.
    grep -qF "/$file\"" "$2/compile_commands.json" && printf '%s\n' "$file"
  done | xargs --no-run-if-empty clang-tidy-14 --quiet -p "$2" 2>/dev/null
