#!/usr/bin/env bash
# Runs the sanity test as jobs of one learner and two rollouts, all in the background:
#   deploy/examples/sanity/run.sh WORK_DIRECTORY WHAT
#   core        {BF16, FP16} x {dr_grpo, pg_seq_is} x 3 seeds
#   rest        the other precisions and presets of the grid
#   aggressive  brisk.yaml and steep.yaml in BF16 and FP16
#   status      what the learner has
#   stop        ends the servers; a running job is kept as it is
# and in the foreground, on the base model:
#   offline     its accuracy in FP16, BF16 and FP32
#   mismatch    its mismatch in nine pairs of precisions, and in the bitwise profile
#   gradient    bias and variance of its policy gradient under each correction
# WORK_DIRECTORY is what make_model.sh made. The same command again goes on where everything was left: a
# job that was submitted is not submitted twice, one that was interrupted continues from its
# checkpoint. A run is in WORK_DIRECTORY/runs/NAME, NAME being
# ROLLOUT-LEARNER-PROFILE-PRESET[-VARIANT]-sSEED.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${HALFSTEP_BIN:-$here/../../../build/release/bin}" && pwd)
usage="usage: run.sh WORK_DIRECTORY core|rest|aggressive|offline|mismatch|gradient|status|stop"
work=$(cd "${1:?"$usage"}" && pwd)
servers=$work/servers
export HALFSTEP_LEARNER=127.0.0.1:${SANITY_PORT:-5105}

alive() {
  [ -f "$servers/$1.pid" ] && kill -0 "$(cat "$servers/$1.pid")" 2>/dev/null
}

# start NAME COMMAND...: in the background, unless it is there already.
start() {
  local name=$1
  shift
  alive "$name" && return
  setsid "$@" >>"$servers/$name.log" 2>&1 </dev/null &
  echo $! >"$servers/$name.pid"
}

start_servers() {
  mkdir -p "$servers" "$work/jobs"
  start learner "$bin/halfstep-learner" --root "$work" --listen "$HALFSTEP_LEARNER" \
    --http 127.0.0.1:0 --log-level warning
  for name in rollout1 rollout2; do
    start "$name" "$bin/halfstep-rollout" --learner "$HALFSTEP_LEARNER" --id "$name" --threads 1 \
      --log-level warning
  done
  for _ in $(seq 100); do
    "$bin/halfstep" list >/dev/null 2>&1 && return
    alive learner || break
    sleep 0.1
  done
  echo "the learner does not answer at $HALFSTEP_LEARNER; see $servers/learner.log" >&2
  exit 1
}

stop_servers() {
  for name in learner rollout1 rollout2; do
    if alive "$name"; then kill "$(cat "$servers/$name.pid")"; fi
  done
}

# run BASE SUFFIX ROLLOUT LEARNER PROFILE PRESET SEED
run() {
  local base=$1 name=$3-$4-$5-$6$2-s$7 job state
  {
    cat "$here/$base"
    printf '%s\n' "output_dir: runs/$name" "seed: $7" "profile: $5" "algorithm: {preset: $6}" \
      "precision: {rollout: $3, learner: $4}"
  } >"$work/jobs/$name.yaml"
  read -r job state < <("$bin/halfstep" submit "$work/jobs/$name.yaml" --format json \
    --request-id "sanity-$name" |
    python3 -c 'import json, sys; job = json.load(sys.stdin); print(job["name"], job["state"])')
  if [ "$state" = paused ]; then "$bin/halfstep" resume "$job" >/dev/null; fi
  echo "$name: $job, $state"
}

core() {
  for seed in 1 2 3; do
    for preset in dr_grpo pg_seq_is; do
      for precision in bf16 fp16; do
        run rl.yaml "" "$precision" "$precision" fast "$preset" "$seed"
      done
    done
  done
}

rest() {
  for seed in 1 2 3; do
    for preset in dr_grpo pg_seq_is grpo_token_tis grpo_seq_mis gspo; do
      run rl.yaml "" fp32 bf16 fast "$preset" "$seed"
      run rl.yaml "" fp16 fp16 bitwise "$preset" "$seed"
      case $preset in dr_grpo | pg_seq_is) continue ;; esac # core has these
      run rl.yaml "" bf16 bf16 fast "$preset" "$seed"
      run rl.yaml "" fp16 fp16 fast "$preset" "$seed"
    done
  done
}

aggressive() {
  for variant in brisk steep; do
    for precision in bf16 fp16; do
      run "$variant.yaml" "-$variant" "$precision" "$precision" fast dr_grpo 1
    done
  done
}

offline() {
  mkdir -p "$work/offline"
  { cat "$here/rl.yaml"; echo "profile: fast"; } >"$work/offline/job.yaml"
  for precision in fp16 bf16 fp32; do
    [ ! -f "$work/offline/$precision.json" ] || continue
    "$bin/halfstep" eval "$work/model" --data "$work/train.jsonl" --job "$work/offline/job.yaml" \
      --root "$work" --precision "$precision" --samples 8 --format json \
      --samples-file "$work/offline/$precision.jsonl" >"$work/offline/$precision.part"
    mv "$work/offline/$precision.part" "$work/offline/$precision.json"
  done
}

# mismatch_of NAME ARGUMENTS...
mismatch_of() {
  local output=$work/mismatch/$1
  shift
  [ -f "$output/mismatch.json" ] || "$bin/halfstep" mismatch "$work/model" --max-new-tokens 320 \
    --prompts "$work/train.jsonl" --seeds 3 --output "$output" "$@"
}

mismatch() {
  mismatch_of fast --matrix
  for precision in fp16 bf16 fp32; do
    mismatch_of "bitwise-$precision" --profile bitwise --rollout-dtype "$precision" \
      --learner-dtype "$precision"
  done
}

gradient() {
  [ ! -f "$work/gradient.json" ] || return 0
  "$bin/halfstep" gradient-bias "$work/model" --data "$work/train.jsonl" --reward numeric \
    --max-new-tokens 320 --batches 32 --batch-prompts 8 --samples 4 --format json \
    >"$work/gradient.part"
  mv "$work/gradient.part" "$work/gradient.json"
}

case ${2:?"$usage"} in
core | rest | aggressive)
  start_servers
  "$2"
  ;;
offline | mismatch | gradient) "$2" ;;
status) "$bin/halfstep" list ;;
stop) stop_servers ;;
*)
  echo "$usage" >&2
  exit 2
  ;;
esac
