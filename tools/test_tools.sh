#!/usr/bin/env bash
# With TEST_TOOLS=1, installs what some tests use and the project itself does not: a browser to look at the report with, a
# slurm to run the batch jobs under, in lane tf2 requirements/extras.txt, and .venv-torch, the environment of
# requirements/torch.txt, which both lanes share. Where that can't be done, it says so, and those tests are skipped. Its
# argument is the environment, as tools/setup.sh prints it.
set -euo pipefail
if [ "${TEST_TOOLS:-}" != 1 ]; then exit 0; fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=$1
say() { echo "test tools: $*" >&2; }

missing=()
for pair in chromium:chromium slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge; do
    PATH=$PATH:/usr/sbin type -P "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    sudo=()
    if [ "$(id -u)" != 0 ]; then sudo=(sudo -n); fi
    say "installing ${missing[*]}"
    if ! { type -P apt-get >/dev/null && "${sudo[@]}" true && { "${sudo[@]}" apt-get -qq update || true; } &&
           "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -y --no-install-recommends \
               install "${missing[@]}"; } >"$env.test-tools.log" 2>&1 </dev/null; then
        say "not installed, so their tests are skipped: sudo apt-get install ${missing[*]}"
    fi
fi

sum=$(sha256sum requirements/extras.txt | cut -d ' ' -f 1)
if [ "$(cat "$env/.setup/extras" 2>/dev/null)" != "$sum" ]; then
    say "installing requirements/extras.txt"
    if "$env/bin/python" -m pip install --no-deps -r requirements/extras.txt >>"$env.test-tools.log" 2>&1 </dev/null; then
        echo "$sum" >"$env/.setup/extras"
    else
        say "not installed, so their tests are skipped: requirements/extras.txt, see $env.test-tools.log"
    fi
fi

# --- .venv-torch: made again from nothing when its pins have changed, or the checkout has been moved ---------------------

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
exec 9>"$torch.lock"  # the other lane's set-up may be at it
flock -n 9 || { say "waiting for another set-up of .venv-torch"; flock 9; }
if [ "$(cat "$torch/made-of" 2>/dev/null)" != "$torch_sum" ]; then make_torch; fi
