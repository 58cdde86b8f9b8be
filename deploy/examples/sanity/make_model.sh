#!/usr/bin/env bash
# Makes what the sanity test starts from, bit for bit, from nothing but a seed:
#   deploy/examples/sanity/make_model.sh WORK_DIRECTORY
# Writes WORK_DIRECTORY/model, the base model (supervised on the sums of a teacher with gaps), and
# WORK_DIRECTORY/train.jsonl, the prompts that it gets right in 20 to 80 % of 40 samples. Needs python3
# and a built release preset (or HALFSTEP_BIN, a folder of its binaries). What is done is not repeated.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${HALFSTEP_BIN:-$here/../../../build/release/bin}
work=${1:?"usage: make_model.sh WORK_DIRECTORY"}

mkdir -p "$work"
cp "$here"/*.yaml "$work/"
if [ ! -d "$work/model" ]; then
  "$here/make_sanity_data.py" "$work"
  "$bin/halfstep" train "$work/sft.yaml" --root "$work" --rollouts 0
  cp -r "$work/sft/model" "$work/model.part"
  mv "$work/model.part" "$work/model"
fi
if [ ! -f "$work/train.jsonl" ]; then
  "$bin/halfstep" dataset sanity "$work/model" --prompts "$work/candidates.jsonl" \
    --output "$work/train.jsonl" --job "$work/rl.yaml" --root "$work" --format json \
    >"$work/selection.json"
fi
sha256sum "$work/model/model.safetensors" "$work/train.jsonl"
