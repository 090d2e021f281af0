#!/usr/bin/env bash
# Everything worth knowing on one CUDA machine, in one call of under ten minutes:  benchmarks/gpu.sh [FOLDER]
# The most important rows come first and are written as they are measured, so a time-out loses only the tail.
#
# FOLDER  gets *.jsonl, summary.md and plots (default: $OUT, else benchmarks/results)
# TINY=1  the same with tiny models, on any machine: a rehearsal of this script
# BUDGET  seconds for all of it (570); the report has its share
# ONLY    names of parts, for a second call with a budget of its own: ONLY="ladder-sdxl presets-sdxl tests"
# PEERS   checkouts, such as PEERS="kohya=/path,python=/path/to/its/python"
# PYTHON  the interpreter (python3)
set -u
cd "$(dirname "$0")/.."
out=${1:-${OUT:-benchmarks/results}}
mkdir -p "$out"
python=${PYTHON:-python3}
tiny=${TINY:+--tiny}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

measure() {  # name of the part, its seconds at most, then a suite and its options
    local name=$1 limit=$2 left=$((${BUDGET:-570} - 15 - SECONDS)); shift 2
    [[ -n "${ONLY:-}" && " $ONLY " != *" $name "* ]] && return
    [[ -n "${ONLY:-}" ]] && limit=$left
    (( limit > left )) && limit=$left
    (( limit < 5 )) && { echo "== $name left out: no time"; return; }
    echo "== $name, at second $SECONDS (at most ${limit} s)"
    if [[ $1 == pytest ]]; then
        timeout -k 10 "$limit" "$python" -m "$@" 2>&1 | tail -n 60 | tee "$out/gpu-tests.txt"
    else
        timeout -k 10 "$limit" "$python" -m benchmarks "$@" $tiny --out "$out" || echo "== $name ended early ($?)"
    fi
}

timeout -k 5 60 "$python" -m trainer doctor 2>&1 | tee "$out/doctor.txt"
measure ladder       130 ladder   --model sd1
measure peers        150 peers    --model sd1 --preset 6gb --repeats 1 ${PEERS:-}
measure presets      150 presets  --model sd1
measure profile       40 profile  --model sd1
measure ladder-sdxl  100 ladder   --model sdxl --repeats 2
measure kernels       60 kernels
measure planner       60 planner  --model sd1
measure presets-sdxl 200 presets  --model sdxl
measure scaling       60 scaling  --repeats 3
[[ -z $tiny ]] && measure tests 300 pytest -q -n 4 -m gpu tests
timeout -k 5 30 "$python" -m benchmarks report --results "$out" --out "$out" --no-readme
