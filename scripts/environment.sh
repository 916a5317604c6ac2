# Sourced by quickstart.sh and test.sh: changes to the repository's root, creates the virtual environment once, and sets
# $PYTHON to its interpreter. `environment FILE` installs the requirements of FILE when they or constraints.txt changed.
#   VENV=FOLDER        the virtual environment (default: .venv)
#   BASE_PYTHON=FILE   the interpreter that creates it (default: python3)
#   NEWEST=1           install the newest versions instead of the tested ones in constraints.txt

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
PYTHON=$VENV/bin/python

environment() {
    local base=${BASE_PYTHON:-python3} stamp="$VENV/.installed-$1" wanted
    if [ ! -x "$PYTHON" ]; then
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"Python >= 3.10 is needed, this is {sys.version}")'
        echo "creating the virtual environment $VENV"
        "$base" -m venv "$VENV"
    fi
    if [ "${NEWEST:-0}" = 1 ]; then
        wanted="the newest of $(cat requirements*.txt)"
    else
        wanted=$(cat requirements*.txt constraints.txt)
    fi
    if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
        echo "installing $1 into $VENV (PyTorch brings about 5 GB; a few minutes)"
        if [ "${NEWEST:-0}" = 1 ]; then
            run_pip --quiet --upgrade --upgrade-strategy eager --requirement "$1"
        else
            install_tested "$1"
        fi
        echo "$wanted" > "$stamp"
    fi
}

# install_tested FILE: with the versions in constraints.txt. One that cannot be installed (withdrawn, or not available for
# this platform) is reported and left out, so that pip takes the newest that fits; all others stay as tested.
install_tested() {
    local constraints="$VENV/constraints.txt" log="$VENV/pip.log" name pin left_out
    cp constraints.txt "$constraints"
    until run_pip --constraint "$constraints" --requirement "$1" > "$log" 2>&1; do
        left_out=
        for name in $(conflicting_packages "$log"); do
            pin=$(grep "^$name==" "$constraints") || continue
            echo "constraints.txt: $pin cannot be installed here; taking the newest version that fits"
            grep -v "^$name==" "$constraints" > "$constraints.kept" || true
            mv "$constraints.kept" "$constraints"
            left_out=1
        done
        if [ -z "$left_out" ]; then
            cat "$log" >&2
            return 1
        fi
    done
}

# conflicting_packages LOG: the pinned packages that pip blames, or else those whose requirements cannot be met
conflicting_packages() {
    sed -n 's/^ *The user requested (constraint) \([A-Za-z0-9-]*\).*/\1/p' "$1" | sort -u | grep . ||
        sed -n 's/^ *\([A-Za-z0-9-]*\) [^ ]* depends on .*/\1/p' "$1" | sort -u
}

run_pip() {
    # without pip's cache, which would keep another 3 GB
    "$PYTHON" -m pip install --no-cache-dir --disable-pip-version-check "$@"
}
