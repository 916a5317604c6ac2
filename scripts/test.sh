#!/usr/bin/env bash
# All checks: ruff, then the tests. Makes its own virtual environment; arguments go to pytest (-m "not slow", -k WORD).
set -euo pipefail
source "$(dirname "$0")/environment.sh"
environment requirements-dev.txt
# one thread per process: the tests start several processes on two cores
export OMP_NUM_THREADS=1
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
