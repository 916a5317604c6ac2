#!/usr/bin/env bash
# Runs every benchmark and writes the reports to benchmarks/results/: ./benchmarks/run.sh
# With a GPU, the step and the similarity are measured on it (reports *_gpu.md); otherwise everything runs on the CPU.
# Use an idle machine; it takes about half an hour on 2 CPU cores.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=benchmarks/results
mkdir -p "$RESULTS"

run() {
    local report=$1
    shift
    echo "== $report"
    "$PYTHON" -m "$@" --output "$RESULTS/$report.md" > "$RESULTS/$report.log" 2>&1 || { cat "$RESULTS/$report.log"; exit 1; }
    rm "$RESULTS/$report.log"
}

if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    run step_gpu benchmarks.step
    run similarity_gpu benchmarks.similarity --device cuda
    exit
fi
run decode benchmarks.decode
run frame_cache benchmarks.frame_cache
run step benchmarks.step
run similarity benchmarks.similarity
run evaluation benchmarks.evaluation
run checkpoint benchmarks.checkpoint
run search benchmarks.search
run qdrant benchmarks.qdrant
