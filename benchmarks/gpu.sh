#!/usr/bin/env bash
# Everything worth knowing on one CUDA machine, in order of risk, in two calls:
#
#   benchmarks/gpu.sh first  [FOLDER]   does it run: versions, tests for a card, the probe, the demo, plans against memory, profile, ladder
#   benchmarks/gpu.sh second [FOLDER]   how good is it: presets under their caps, peers, SDXL, kernels, sizes
#
# Rows are written as they are measured, so a time-out loses only the tail. What a machine without internet needs carried to
# it stands in benchmarks/NOTES.md.
#
# FOLDER  gets *.jsonl, summary.md and plots (default: $OUT, else benchmarks/results)
# TINY=1  the same with tiny models, on any machine: a rehearsal of this script
# BUDGET  seconds for all of it (420); the report has its share
# ONLY    names of parts, which then share the budget: ONLY="presets-sd1 peers"
# PEERS   checkouts, such as PEERS="kohya=/path,python=/path/to/its/python"
# PYTHON  the interpreter (python3)
# BENCHMARKS_COMMIT  what rows call the commit, where the folder is a copy of a checkout
set -u
cd "$(dirname "$0")/.."
call=${1:?first or second}
out=${2:-${OUT:-benchmarks/results}}
mkdir -p "$out"
python=${PYTHON:-python3}
tiny=${TINY:+--tiny}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

part() {  # its name, its seconds at most, then a module and its words
    local name=$1 limit=$2 left=$((${BUDGET:-420} - 15 - SECONDS)) log="$out/gpu-$1.txt"; shift 2
    [[ -n "${ONLY:-}" && " $ONLY " != *" $name "* ]] && return
    [[ -n "${ONLY:-}" ]] && limit=$left
    (( limit > left )) && limit=$left
    (( limit < 5 )) && { echo "== $name left out: no time"; return; }
    local began=$SECONDS ended said
    timeout -k 10 "$limit" "$python" -m "$@" >"$log" 2>&1
    ended=$?
    said=$(tail -n 40 "$log" | cut -c 1-400)  # in one piece, where several end at once
    printf '%s\n== %s: second %s to %s%s\n' "$said" "$name" "$began" "$SECONDS" "$( (( ended )) && echo ", ended with $ended")"
}

measure() {  # as `part`, for a suite and its options
    local name=$1 limit=$2; shift 2
    part "$name" "$limit" benchmarks "$@" $tiny --out "$out"
}

if [[ $call == first ]]; then
    # what is right or wrong, and bytes of a process's own, share the card; what is timed has it for itself
    part    versions  120 trainer doctor &
    part    tests     150 pytest -q --maxfail 12 -n 4 -m gpu $(grep -rlE 'mark\.gpu' tests --include='*.py') &
    part    demo      120 trainer --preset 12gb --output_dir "$(mktemp -d)/run" --no-watch &
    measure planner   120 planner --model sd1 &
    wait
    part    probe      60 trainer plan --preset 12gb --family sd1
    measure ladder    130 ladder  --model sd1
    measure profile    60 profile --model sd1
    measure kernels    60 kernels
else
    # jobs of their own are slow to start, and their bytes are their own: all at once, few threads each
    export OMP_NUM_THREADS=2
    measure presets-sd1  220 presets 4gb 6gb 8gb 12gb together --model sd1 &
    measure presets-sdxl 220 presets 4gb 12gb together --model sdxl &
    measure least-sd1    220 planner least --model sd1 &
    measure least-sdxl   220 planner least "case=all streamed" "case=state streamed" --model sdxl &
    wait
    unset OMP_NUM_THREADS
    measure ladder-sdxl  100 ladder  --model sdxl --repeats 2
    measure peers        150 peers   --model sd1 --preset 6gb --repeats 1 ${PEERS:-}
    measure scaling       60 scaling --repeats 3
fi
timeout -k 5 30 "$python" -m benchmarks report --results "$out" --out "$out" --no-readme >"$out/gpu-report.txt" 2>&1 || echo "== no report"
