#!/usr/bin/env bash
# Makes .venv-torch, the environment of requirements/torch.txt, in which some tests run PyTorch: again from nothing when
# its pins have changed, or the checkout has been moved. Where that can't be done, it says so, and they are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { echo "test tools: $*" >&2; }

suits_torch() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

make_torch() {
    local python candidates
    candidates=$(compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.1[123].*/bin/python" || true)
    for python in python3.11 python3.12 python3.13 python3 $candidates; do
        if ! suits_torch "$python"; then continue; fi
        say "making .venv-torch with $python: requirements/torch.txt, log: $torch.log"
        rm -rf "$torch"
        if { "$python" -m venv "$torch" && "$torch/bin/python" -m pip install -r requirements/pip.txt &&
             "$torch/bin/python" -m pip install --only-binary :all: --no-binary efficientnet-lite-pytorch \
                 -r requirements/torch.txt; } >"$torch.log" 2>&1 </dev/null; then
            echo "$torch_sum" >"$torch/made-of"
        else
            rm -rf "$torch"  # half of it would fail the tests
            say "not installed, so its tests are skipped: .venv-torch, see $torch.log"
        fi
        return
    done
    say "not installed, so its tests are skipped: .venv-torch needs Python 3.11 to 3.13, and none is on PATH or in pyenv"
}

torch=$PWD/.venv-torch
torch_sum="$torch $(sha256sum requirements/torch.txt | cut -d ' ' -f 1)"
exec 9>"$torch.lock"  # the other lane's set-up may be at it, or .ci/run
flock -n 9 || { say "waiting for another set-up of .venv-torch"; flock 9; }
if [ "$(cat "$torch/made-of" 2>/dev/null)" != "$torch_sum" ]; then make_torch; fi
