#!/usr/bin/env bash
# Train on all GPUs of a slurm allocation, with one data server on each node. From the checkout:
#
#   sbatch -N 16 --time 24:00:00 slurm/train.sh --data DIR --batch 32 --attack-iter 30 --arch ResNetDenoise -d 152
#
# Arguments go to main.py. Before the time limit the training saves a checkpoint, and the job is queued again to go on from
# it with --resume; so it is when a node fails. The ranks' output is in slurm-JOB/RESTART/, and in slurm-JOB.log.
#SBATCH --job-name=adversarial-training
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@180

# What differs between sites; set it here or in the environment.
PYTHON_ENVIRONMENT=${PYTHON_ENVIRONMENT:-.venv-tf2}          # of Python, as `make setup` makes it
GPUS_PER_NODE=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}     # and ranks
MPI_OPTIONS=${MPI_OPTIONS:-}                                 # for example: --mca btl_tcp_if_include ib0
SERVER_OPTIONS=${SERVER_OPTIONS:-}                           # of serve-data.py, for example: --workers 32
TRAINING_SOCKET_FOLDER=${TRAINING_SOCKET_FOLDER:-/tmp}       # on each node's own disk: shared ones may have no sockets

timed_out='' stopped='' data=''
trap 'timed_out=yes' USR1
trap 'stopped=yes' TERM
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this is a job for sbatch}"
bin=$(cd "$PYTHON_ENVIRONMENT/bin" && pwd)
export PATH=$bin:$PATH
export OMPI_MCA_odls_base_sigkill_timeout=60  # should mpirun itself get a SIGTERM: time for checkpoints
restart=${SLURM_RESTART_COUNT:-0}
logs=slurm-$SLURM_JOB_ID/$restart
mkdir -p "$logs"
# One socket a job and node: several of them may share a machine.
export SOCKETS=$TRAINING_SOCKET_FOLDER/adversarial-training-$(id -u)-$SLURM_JOB_ID

arguments=() server=() fake='' resume=--resume
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --overwrite) [ "$restart" -gt 0 ] && continue ;;  # it would delete what was trained so far
        --fake) fake=yes ;;
        --resume | --resume=*) resume='' ;;  # it may name a directory, which another --resume would take back
        --data | --batch | --image-size | --classes) next=$((i + 1)); server+=("${!i}" "${!next:-}") ;;
        --data=* | --batch=* | --image-size=* | --classes=*) server+=("${!i}") ;;
    esac
    arguments+=("${!i}")
done
if [ "$restart" -gt 0 ] && [ -n "$resume" ]; then arguments+=("$resume"); fi

trap '[ -z "$data" ] || kill "$data" 2>/dev/null || true; rm -rf "$SOCKETS"' EXIT

if [ -z "$fake" ]; then
    # shellcheck disable=SC2016,SC2086  # expanded on the node; a list of words
    srun --mpi=none --overlap --ntasks-per-node=1 --kill-on-bad-exit=0 --output="$logs/server-%n.log" bash -c \
        'mkdir -p -m 700 "$SOCKETS" && exec python third_party/serve-data.py --endpoint "ipc://$SOCKETS/$SLURMD_NODENAME" "$@"' \
        serve-data "${server[@]}" $SERVER_OPTIONS &
    data=$!
fi

# USR1 is ignored until main.py listens to it: it would end a process that is still starting. It is sent again below.
# shellcheck disable=SC2016,SC2086
mpirun --map-by "ppr:$GPUS_PER_NODE:node:OVERSUBSCRIBE" --bind-to none --output-filename "$PWD/$logs" $MPI_OPTIONS bash -c \
    'trap "" USR1; exec python main.py --endpoint "ipc://$SOCKETS/$SLURMD_NODENAME" "$@"' main "${arguments[@]}" &
training=$!
while kill -0 "$training" 2>/dev/null; do
    if [ -n "$timed_out$stopped" ]; then kill -USR1 "$training" 2>/dev/null || true; fi
    sleep 5 &
    wait $! || true  # a signal ends the waiting at once
done
status=0
wait "$training" || status=$?
echo "attempt $restart ended with status $status"
if [ -n "$timed_out" ] && [ "$status" = 0 ]; then
    echo "the time is up: queued again, to go on from the last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60  # until slurm ends this attempt
fi
exit "$status"
