#!/usr/bin/env bash
# Checks style and types: ruff and mypy as pyproject.toml configures them, in .venv-lint, which it makes when
# requirements/lint.txt has changed. Exit status: 0 nothing found, 1 something was, 2 it can't run here.
#
#   PYTHON   the interpreter to make the environment with, 3.11 or later; without it: the first on PATH or in pyenv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=$PWD/.venv-lint

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local python
    for python in ${PYTHON:-} python3 python3.{11,12,13,14} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
        if fits "$python"; then echo "$python"; return; fi
    done
    echo 'lint: error: ruff and mypy need Python 3.11 or later, and none is on PATH or in pyenv: give PYTHON=...' >&2
    exit 2
}

sum=$(sha256sum requirements/lint.txt | cut -d ' ' -f 1)
if [ "$(cat "$env/made-of" 2>/dev/null)" != "$sum" ]; then
    python=$(find_python)
    echo "lint: making .venv-lint with $python" >&2
    rm -rf "$env"
    "$python" -m venv "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/lint.txt
    echo "$sum" >"$env/made-of"
fi

status=0
"$env/bin/ruff" check . || status=1
"$env/bin/mypy" || status=1
exit $status
