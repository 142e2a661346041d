#!/usr/bin/env bash
# Trains storybook-64, the model that ships, from scratch: 21 hours on two CPU cores.
#
#   recipes/storybook-64.sh            makes runs/storybook-64: weights, evaluation.json, README.md (the card)
#   recipes/storybook-64.sh --smoke    tries all stages with a few steps of a small network, in runs/smoke
#
# The same command again resumes: a complete stage is skipped, and a stopped one goes on where it stopped.
# RUNS names another directory. The storybook draws its own data. KID and recall need the extra `eval`.
# Each run starts from the one before, mostly with a smaller weight of R1 and R2: images get cleaner.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
SMOKE=
if [ "${1:-}" = --smoke ]; then SMOKE=1; fi
RUNS=${RUNS:-runs${SMOKE:+/smoke}}
SMALL=(--batch 8 --model.width 32 --model.critic-widths 16 16 32 --text.width 32 --log.evaluate 0)
mkdir -p "$RUNS/.complete"

# Prints the last step in the metrics of the run $1, or 0.
last_step() {
    local step
    step=$(sed -n '$s/^{"step": \([0-9]*\),.*/\1/p' "$RUNS/$1/metrics.jsonl" 2>/dev/null || true)
    echo "${step:-0}"
}

# stage NAME COMMAND...: runs a command, unless it has been completed before.
stage() {
    if [ -e "$RUNS/.complete/$1" ]; then return; fi
    echo "== $1: ${*:2}"
    "${@:2}"
    touch "$RUNS/.complete/$1"
}

# run NAME STEPS COMMAND...: trains the run NAME. Fails if the run was stopped before it had so many steps.
run() {
    "${@:3}"
    local step
    step=$(last_step "$1")
    if [ "$step" -lt "$2" ]; then
        echo "$1 stopped at step $step of $2; the same command resumes it" >&2
        exit 1
    fi
}

# stop_at STEP NAME COMMAND...: trains the run NAME, and stops it at STEP as Ctrl-C would.
stop_at() {
    if [ "$(last_step "$2")" -ge "$1" ]; then return; fi
    "${@:3}" &
    while kill -0 $! 2>/dev/null && [ "$(last_step "$2")" -lt "$1" ]; do sleep 2; done
    kill -TERM $! 2>/dev/null || true
    wait $!
}

# train NAME PRESET STEPS [until STEP] FLAG...: a training run in $RUNS/NAME.
train() {
    local name=$1 preset=$2 steps=$3 end=$3 start=(command)
    shift 3
    if [ "${1:-}" = until ]; then
        end=$2 start=(stop_at "$2" "$name")
        shift 2
    fi
    if [ -n "$SMOKE" ]; then
        steps=3 end=3 start=(command)
        set -- "$@" "${SMALL[@]}"
    fi
    stage "$name" run "$name" "$end" "${start[@]}" \
        "$PYTHON" train.py "$preset" --workdir "$RUNS/$name" --steps "$steps" "$@"
}

# 32 px, one object
train quickstart quickstart 1896 --model.shrink --model.blocks 2 --loss.penalty-share 0.25 \
    --loss.gamma 1 0.1 --optim.muon 0 --optim.ema 0.06 --optim.lr 5e-4 1e-5 --optim.lr-d 1e-3 3e-5
train storybook32 storybook32 5600 --init-from "$RUNS/quickstart"
train storybook32-more storybook32 6400 --init-from "$RUNS/storybook32" --seed 2 \
    --loss.gamma 0.2 0.05 --loss.diversity 1 --optim.lr 4e-4 1e-5 --optim.lr-d 8e-4 3e-5
late=(--optim.muon 25 --loss.penalty-share 0.125 --loss.diversity 1 --optim.lr-d 4e-4 1e-5)
train storybook32-last storybook32 4400 --init-from "$RUNS/storybook32-more" --seed 3 "${late[@]}" \
    --loss.gamma 0.2 0.05 --optim.lr 4e-4 1e-5
train storybook32-refined storybook32 3200 --init-from "$RUNS/storybook32-last" --seed 4 "${late[@]}" \
    --loss.gamma 0.1 0.05 --optim.lr 5e-4 1e-5 --model.refine 128
# all of the refinement would be more than the 16 MiB that weights have in the package
stage storybook32-narrow \
    "$PYTHON" recipes/prune.py "$RUNS/storybook32-refined" "$RUNS/storybook32-narrow" --refine 64
train storybook32-end storybook32 2200 --init-from "$RUNS/storybook32-narrow" --seed 5 "${late[@]}" \
    --loss.gamma 0.05 0.05 --optim.lr 4e-4 1e-5 --model.refine 64
save="import dallegan, sys; dallegan.load(sys.argv[1]).save(sys.argv[2])"
stage storybook-32 "$PYTHON" -c "$save" "$RUNS/storybook32-end" "$RUNS/storybook-32"

# 32 px, one or two objects
train pairs32 pairs32 9600 until 6554 --init-from "$RUNS/storybook-32"
stage pairs32-shared "$PYTHON" recipes/share_encoder.py "$RUNS/pairs32" "$RUNS/pairs32-shared"
train pairs32-end pairs32 9600 --init-from "$RUNS/pairs32-shared" --seed 12 \
    --loss.gamma 0.2 0.05 --optim.lr 6e-4 1e-5 --optim.lr-d 6e-4 1e-5

# 64 px: patches twice as large, then two stages of detail
stage narrow-pairs "$PYTHON" recipes/prune.py "$RUNS/pairs32-end" "$RUNS/narrow-pairs" --style 152
train pairs64 pairs64 6000 --init-from "$RUNS/narrow-pairs"
train fine64 fine64 2400 --init-from "$RUNS/pairs64"
fine=(--optim.lr 3e-4 1e-5 --optim.lr-d 3e-4 1e-5)
train fine64b fine64 3200 --init-from "$RUNS/fine64" --seed 15 --loss.gamma 0.06 0.02 "${fine[@]}"
train fine64c fine64 2400 --init-from "$RUNS/fine64b" --seed 16 --loss.gamma 0.02 8e-3 "${fine[@]}"
train fine64d fine64 1800 --init-from "$RUNS/fine64c" --seed 17 --loss.gamma 0.01 4e-3 "${fine[@]}"
fine+=(--optim.ema 0.2)
train fine64e fine64 2500 --init-from "$RUNS/fine64d" --seed 18 --loss.gamma 8e-3 4e-3 "${fine[@]}"
train fine64f fine64 2200 --init-from "$RUNS/fine64e" --seed 19 --loss.gamma 6e-3 4e-3 "${fine[@]}"
stage fine64-average "$PYTHON" recipes/average.py "$RUNS/fine64e" "$RUNS/fine64f" --weights 0.4 0.6 \
    --out "$RUNS/fine64-average"
train fine64g fine64 1550 --init-from "$RUNS/fine64-average" --seed 20 --loss.gamma 5e-3 4e-3 "${fine[@]}" \
    --model.shrink 2 1 1

# the model that ships
model=$RUNS/storybook-64
stage storybook-64 "$PYTHON" recipes/average.py "$RUNS/fine64-average" "$RUNS/fine64g" --weights 0.4 0.6 \
    --out "$model"
measure=(--n 2000)
if [ -n "$SMOKE" ]; then measure=(--n 50 --features none); fi
report=$model/evaluation.json
stage evaluation "$PYTHON" -m dallegan evaluate --model "$model" --json "$report" "${measure[@]}"
stage card "$PYTHON" recipes/card.py "$model" "$report"
