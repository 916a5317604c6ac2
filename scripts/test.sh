#!/usr/bin/env bash
# All checks: ruff, then the tests in two processes. Creates its own virtual environment; arguments go to pytest
# (-m "not slow", -k WORD, -n 0 for one process, --soak for the repetitions that CI runs). NEWEST=1 takes the newest
# packages instead of constraints.txt.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
environment requirements-dev.txt
# one thread per process: the tests start several processes on two cores
export OMP_NUM_THREADS=1
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -n 2 --maxschedchunk 1 "$@"
