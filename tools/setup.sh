#!/usr/bin/env bash
# Makes the environment of one lane, .venv-tf1 or .venv-tf2 in this checkout, or finds it made; then prints its path
# on stdout. All else goes to stderr. Exit status: 0 ready, 2 something that the user must do first, 1 a step failed.
#
#   LANE     tf1 (Python 3.7, TensorFlow 1.15) or tf2 (Python 3.9 to 3.12, TensorFlow 2.18);
#            without it: the lane that this machine's Python can run, tf2 first
#   PYTHON   the interpreter to use, a command or a path; without it: the one that the environment was made with, else
#            the first that fits, on PATH and then in pyenv
#   HOROVOD_*  reach Horovod's build, for example HOROVOD_GPU_OPERATIONS=NCCL; to build it again, remove the environment
#
# .venv-LANE/.setup/ holds what each step was done for: 'base' (when it changes, all is made again from nothing),
# 'packages' (when it changes, they are brought up to date in place) and 'native' (the local packages with compiled
# code). A step's file is written after the step, so an interrupted set-up starts again where that is safe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
# What a shell or a container may have set for another Python would reach into this environment.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-60}

say() { echo "setup: $*" >&2; }
fail() { echo "setup: error: $*" >&2; exit 2; }

# --- The interpreter -------------------------------------------------------------------------------------------------

# version_of PYTHON: its 'X.Y'; nothing when it does not run (pyenv has shims for versions that are not active).
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

pythons_of() { case "$1" in tf1) echo 3.7 ;; tf2) echo 3.11 3.12 3.10 3.9 ;; esac; }  # in order of preference
suits() { [[ -n $2 && " $(pythons_of "$1") " == *" $2 "* ]]; }                           # suits LANE VERSION
can_make_environments() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

# candidates VERSION...: every path at which one of these may be, one a line: on PATH, then in pyenv.
candidates() {
    local version pyenv
    for version in "$@"; do type -aP "python$version" || true; done
    type -aP python3 python || true
    for pyenv in "${PYENV_ROOT:-}" "$(pyenv root 2>/dev/null || true)" "${HOME:-}/.pyenv"; do
        [ -n "$pyenv" ] || continue
        for version in "$@"; do compgen -G "$pyenv/versions/$version.*/bin/python" || true; done
    done
}

# find_python VERSION...: the first that runs and can make environments; else the first that runs (Debian's python3
# comes without ensurepip, which is one more package to install); else nothing.
find_python() {
    local python incomplete=''
    while IFS= read -r python; do
        [[ " $* " == *" $(version_of "$python") "* ]] || continue
        if can_make_environments "$python"; then echo "$python"; return; fi
        incomplete=${incomplete:-$python}
    done < <(candidates "$@")
    echo "$incomplete"
}

# choose: sets lane, python and version.
choose() {
    local lanes
    case "${LANE:-}" in
        '') lanes='tf2 tf1' ;;
        tf1 | tf2) lanes=$LANE ;;
        *) fail "LANE=$LANE: no such lane; choose tf1 or tf2" ;;
    esac
    if [ -n "${PYTHON:-}" ]; then
        python=$(type -P "$PYTHON" || true)
        # 'python3.12' may be a shim that does not run, or in pyenv alone.
        if [[ $PYTHON =~ ^python(3\.[0-9]+)$ ]]; then python=$(find_python "${BASH_REMATCH[1]}"); fi
        version=$([ -z "$python" ] || version_of "$python")
        [ -n "$version" ] || fail "PYTHON=$PYTHON: no such interpreter, or it does not run"
        for lane in $lanes; do suits "$lane" "$version" && return; done
        fail "PYTHON=$PYTHON is Python $version; lane tf1 needs 3.7, lane tf2 needs 3.9 to 3.12${LANE:+ (LANE=$LANE)}"
    fi
    for lane in $lanes; do  # once made, an environment keeps its interpreter
        version=$(version_of "$root/.venv-$lane/bin/python")
        python=$(sed -n 's/^home = //p' "$root/.venv-$lane/pyvenv.cfg" 2>/dev/null || true)/python$version
        if suits "$lane" "$version" && [ -x "$python" ]; then return; fi
        # shellcheck disable=SC2046  # a list of words
        python=$(find_python $(pythons_of "$lane"))
        if [ -n "$python" ]; then version=$(version_of "$python"); return; fi
    done
    case "${LANE:-}" in
        tf1) fail "lane tf1 needs Python 3.7, and none is on PATH or in pyenv; install it, for example:" \
                  "pyenv install 3.7" ;;
        *) fail "Python 3.9 to 3.12 is needed, and none is on PATH or in pyenv; install one, for example:" \
                "apt-get install python3.11 python3.11-venv (or: pyenv install 3.11)" ;;
    esac
}

# --- What the machine must have ---------------------------------------------------------------------------------------

# compiler: the first that Horovod 0.28.1 compiles with; g++ 14 and later refuse its copy of flatbuffers.
compiler() {
    local name major
    for name in g++ g++-13 g++-12 g++-11; do
        major=$("$name" -dumpversion 2>/dev/null | cut -d . -f 1)
        if [ -n "$major" ] && [ "$major" -le 13 ]; then echo "$name"; return; fi
    done
}

# missing_packages: Debian's names of what is not there. Commands are looked for instead of packages, so that a
# cluster's own Open MPI or compiler counts.
missing_packages() {
    local pair
    for pair in mpirun:openmpi-bin mpicxx:libopenmpi-dev g++:g++ make:make pkg-config:pkg-config; do
        type -P "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    if type -P g++ >/dev/null && [ -z "$(compiler)" ]; then echo g++-13; fi
    pkg-config --exists libzmq 2>/dev/null || echo libzmq3-dev
    pkg-config --exists libjpeg 2>/dev/null || echo libjpeg-dev
    can_make_environments "$python" || echo "python$version-venv"
}

install_system_packages() {
    local missing before='' sudo=()
    if [ "$(id -u)" != 0 ]; then sudo=(sudo -n); fi
    while missing=$(missing_packages | paste -s -d ' ') && [ -n "$missing" ]; do  # g++ may turn out to be too new
        [ "$missing" != "$before" ] || fail "still missing after its installation: $missing (Python: $python)"
        before=$missing
        if ! type -P apt-get >/dev/null || ! "${sudo[@]}" true 2>/dev/null; then
            fail "missing system packages; install them and run this again:" \
                 "sudo apt-get update && sudo apt-get install -y $missing"
        fi
        say "installing system packages: $missing"
        # It may fail for a source that has nothing to do with this: whether the installation works is what counts.
        "${sudo[@]}" apt-get -qq update >>"$log" 2>&1 || true
        # shellcheck disable=SC2086  # a list of words
        logged "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=300 -y --no-install-recommends install $missing
    done
}

# cpu or gpu, by whether an NVIDIA driver is loaded (under WSL only nvidia-smi shows it).
device() {
    if [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1; then echo gpu; else echo cpu; fi
}

# --- The environment --------------------------------------------------------------------------------------------------

# logged COMMAND...: its output goes to the log; when it fails, the log's end is shown and this script ends.
logged() {
    echo "+ $*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null && return
    tail -n 20 "$log" | cut -c 1-300 >&2
    say "error: failed: $*"
    say "the whole log: $log"
    exit 1
}

checksum() { cat "$@" | sha256sum | cut -d ' ' -f 1; }
pins() { sed -e 's/ *#.*//' -e '/^$/d' "$@"; }  # requirements without their reasons
done_for() { [ "$(cat "$env/.setup/$1" 2>/dev/null)" = "$2" ]; }
record() { echo "$2" >"$env/.setup/$1"; }
pip() { logged "$env/bin/python" -m pip "$@"; }

make_environment() {
    say "making .venv-$lane with $python (Python $version)"
    rm -rf "$env"
    logged "$python" -m venv "$env"
    mkdir "$env/.setup"
}

install_packages() {
    rm -f "$env/.setup/base"  # until this is through, the environment is good for nothing
    say "installing requirements/$lane.txt and TensorFlow ($device), log: $log"
    pip install -r requirements/pip.txt
    # Wheels only, but for what the file excepts: one that would be compiled is a pin that does not fit this machine.
    pip install --only-binary :all: -r "requirements/$lane.txt" -r "requirements/$device.txt"
    say "installing requirements/after-tensorflow.txt; Horovod is compiled here: one to three minutes"
    # No cache: pip would take a Horovod that was once built here with other options or for another TensorFlow.
    # Horovod leaves out headers that g++ 12 and earlier bring in by themselves, and later ones do not.
    PATH=$env/bin:$PATH CXX=$(compiler) CXXFLAGS="${CXXFLAGS:-} -include string -include cstdint -include stdexcept" \
        HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 \
        HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
        pip install --no-cache-dir --no-deps --no-build-isolation -r requirements/after-tensorflow.txt
    say "checking with two MPI ranks"
    local as_root=()
    if [ "$(id -u)" = 0 ]; then as_root=(--allow-run-as-root); fi
    logged timeout 120 mpirun -np 2 "${as_root[@]}" --oversubscribe --bind-to none \
        "$env/bin/python" requirements/check.py
}

# Python packages with compiled code; those of ops are built against this lane's TensorFlow.
native=(third_party/zmq_ops third_party/jpeg_region kernels/cpu_conv)
native_sources() {
    find "${native[@]}" -type f ! -path '*/build/*' ! -path '*.egg-info/*' ! -name '*.pyc' 2>/dev/null | sort
}

install_native() {
    local folder copy=$env/.setup/build  # setuptools leaves its build files beside the source
    for folder in "${native[@]}"; do
        [ -d "$folder" ] || continue
        say "compiling $folder"
        rm -rf "$copy"
        cp -r "$folder" "$copy"
        rm -rf "$copy/build"  # what somebody compiled by hand, perhaps for another TensorFlow
        PATH=$env/bin:$PATH pip install --no-cache-dir --no-deps --no-build-isolation --force-reinstall "$copy"
        rm -rf "$copy"
    done
}

# ----------------------------------------------------------------------------------------------------------------------

choose
env=$root/.venv-$lane
log=$env.log
device=$(device)
# Two set-ups of one lane at a time, say a demo's and a test's, would tear at the same files.
exec 9>"$env.lock"
flock -n 9 || { say "waiting for another set-up of .venv-$lane"; flock 9; }

# The path is part of it: an environment does not survive that the checkout is moved.
base="$env $version $(pins requirements/{pip,"$device",after-tensorflow}.txt | checksum)"
packages=$(pins requirements/"$lane".txt | checksum - tools/setup.sh requirements/check.py)
mapfile -t sources < <(native_sources)
sources_sum=$(checksum "${sources[@]}" /dev/null)

if ! done_for base "$base" || ! done_for packages "$packages"; then
    : >"$log"
    install_system_packages
    done_for base "$base" || make_environment
    install_packages
    record packages "$packages"
    record base "$base"
fi
if ! done_for native "$packages $sources_sum"; then
    install_native
    record native "$packages $sources_sum"
fi
say "lane $lane is ready: .venv-$lane, Python $version, $device"
echo "$env"
