#!/usr/bin/env bash
# From a clean clone to a language model that learns by reinforcement learning, on this machine's CPU:
# installs Debian packages, builds the release preset, runs `halfstep demo` with the given arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/install-deps.sh build
[ -f build/release/build.ninja ] || cmake --preset release >/dev/null
cmake --build --preset release --target halfstep halfstep-learner halfstep-rollout
exec build/release/bin/halfstep demo "$@"
