#!/usr/bin/env bash
# Everything worth knowing on one CUDA machine, in one call of under ten minutes:  benchmarks/gpu.sh [FOLDER]
# The most important rows come first and are written as they are measured, so a time-out loses only the tail.
# TINY=1 does the same with tiny models, on any machine: a rehearsal of this script.
# BUDGET: seconds for all of it (570); the report has its share.
# FOLDER (default: $OUT, else benchmarks/results) gets *.jsonl, summary.md and plots.
set -u
cd "$(dirname "$0")/.."
out=${1:-${OUT:-benchmarks/results}}
mkdir -p "$out"
python=${PYTHON:-python3}
tiny=${TINY:+--tiny}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

measure() {  # seconds, then the suite and its options
    local limit=$1 left=$((${BUDGET:-570} - 15 - SECONDS)); shift
    (( limit > left )) && limit=$left
    (( limit < 5 )) && { echo "== $1 left out: no time"; return; }
    echo "== $* (at most ${limit}s)"
    timeout -k 5 "$limit" "$python" -m benchmarks "$@" $tiny --out "$out" || echo "== $1 ended early ($?)"
}

timeout -k 5 60 "$python" -m trainer doctor 2>&1 | tee "$out/doctor.txt"
measure 100 ladder   --model sd1
measure 110 presets  --model sd1
measure  60 planner  --model sd1
measure  60 kernels
measure  40 profile  --model sd1
measure  80 ladder   --model sdxl --repeats 3
measure  60 peers    --model sd1 ${PEERS:-}
measure  40 scaling  --repeats 3
left=$((${BUDGET:-570} - 15 - SECONDS))
if (( left > 5 )) && [ -z "${TINY:-}" ]; then
    timeout -k 5 "$left" "$python" -m pytest -q -n 4 -m gpu tests 2>&1 | tail -n 60 | tee "$out/gpu-tests.txt"
fi
timeout -k 5 30 "$python" -m benchmarks report --results "$out" --out "$out" --no-readme
