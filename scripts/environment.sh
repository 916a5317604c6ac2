# Sourced by quickstart.sh and test.sh: goes to the repository's root, makes the virtual environment once, and sets
# $PYTHON to its interpreter.  `environment FILE` installs the requirements of FILE where they have changed.
# VENV names another folder for the environment (default .venv); BASE_PYTHON another interpreter to start from.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
PYTHON=$VENV/bin/python

environment() {
    local base=${BASE_PYTHON:-python3} stamp="$VENV/.installed-$1" wanted
    if [ ! -x "$PYTHON" ]; then
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"Python >= 3.10 is needed, this is {sys.version}")'
        echo "making the virtual environment $VENV"
        "$base" -m venv "$VENV"
    fi
    wanted=$(cat requirements*.txt)
    if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
        echo "installing $1 into $VENV (PyTorch brings about 5 GB; a few minutes)"
        # without pip's cache, which would keep another 3 GB
        "$PYTHON" -m pip install --no-cache-dir --quiet --disable-pip-version-check --requirement "$1"
        echo "$wanted" > "$stamp"
    fi
}
