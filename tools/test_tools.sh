#!/usr/bin/env bash
# With TEST_TOOLS=1, installs what some tests use and the project itself does not: a browser to look at the report with, a
# slurm to run the batch jobs under, in lane tf2 requirements/extras.txt, and .venv-torch (tools/torch.sh), which both
# lanes share. Where that can't be done, it says so, and those tests are skipped. Its argument is the environment, as
# tools/setup.sh prints it.
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

tools/torch.sh
