#!/usr/bin/env bash
# Evaluate on all GPUs of a slurm allocation. From the checkout:
#
#   sbatch -N 2 --time 2:00:00 slurm/eval.sh --load R152-Denoise.npz --arch ResNetDenoise -d 152 --data DIR \
#       --attack-iter 100 --journal FILE --results FILE
#
# Arguments go to main.py --eval. When a node fails the job is queued again, and goes on from the journal. The ranks' output is in slurm-JOB/RESTART/; the figures are also in slurm-JOB.log.
#SBATCH --job-name=adversarial-evaluation
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

# What differs between sites; set it here or in the environment.
PYTHON_ENVIRONMENT=${PYTHON_ENVIRONMENT:-.venv-tf2}          # of Python, as `make setup` makes it
GPUS_PER_NODE=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}     # and ranks
MPI_OPTIONS=${MPI_OPTIONS:-}                                 # for example: --mca btl_tcp_if_include ib0

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this is a job for sbatch}"
bin=$(cd "$PYTHON_ENVIRONMENT/bin" && pwd)
export PATH=$bin:$PATH
logs=slurm-$SLURM_JOB_ID/${SLURM_RESTART_COUNT:-0}
mkdir -p "$logs"
# shellcheck disable=SC2086  # a list of words
exec mpirun --map-by "ppr:$GPUS_PER_NODE:node:OVERSUBSCRIBE" --bind-to none --output-filename "$PWD/$logs" $MPI_OPTIONS \
    python main.py --eval "$@"
