#!/usr/bin/env bash
# Makes the demo's data and base model again, bit for bit, from nothing but a seed:
#   deploy/examples/demo/make_model.sh [WORK_DIRECTORY]
# Writes train.jsonl, eval.jsonl and model/ beside this script; leaves the supervised run in the work
# directory. Needs python3 and a built release preset. Where the model comes out another, make the golden
# file of the tests anew: tests/golden/make_demo_golden.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$here/../../../build/release/bin
work=${1:-$(mktemp -d)}

"$here/make_demo_data.py" "$work"
cp "$here/sft.yaml" "$work/"
rm -rf "$work/sft"
"$bin/halfstep" train "$work/sft.yaml" --root "$work" --rollouts 0
cp "$work/train.jsonl" "$work/eval.jsonl" "$here/"
mkdir -p "$here/model"
for file in config.json generation_config.json tokenizer.json model.safetensors; do
  cp "$work/sft/model/$file" "$here/model/"
done
sha256sum "$here/model/model.safetensors"
