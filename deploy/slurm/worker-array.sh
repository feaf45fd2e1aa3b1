#!/usr/bin/env bash
# One GPU worker per array task; workers connect outwards, so compute nodes need no open port. 8 run at a time, and
# as each reaches its time limit the next of the 64 takes its place.
#   GIGASMITH_COORDINATOR=https://coordinator:7464 GIGASMITH_TOKEN_FILE=~/token sbatch deploy/slurm/worker-array.sh
#SBATCH --job-name=gigasmith-worker
#SBATCH --array=0-63%8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --output=gigasmith-worker-%A_%a.log
# A drain takes as long as the slowest task; Slurm may send the signal up to a minute early.
#SBATCH --signal=TERM@120
# Preempted workers and those of failed nodes come back; drained ones exit 0 and are done.
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

: "${GIGASMITH_COORDINATOR:?is the URL of the coordinator}"
: "${GIGASMITH_TOKEN_FILE:?is a file on a file system that the nodes share}"
export GIGASMITH_MODEL=${GIGASMITH_MODEL:-stabilityai/stable-diffusion-xl-base-1.0}
export GIGASMITH_DEVICE=cuda
export GIGASMITH_DTYPE=${GIGASMITH_DTYPE:-f16}
export GIGASMITH_NAME=slurm-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID

# Slurm signals job steps, not this script: srun makes the worker a step. `exec`, so that a signal to the batch
# process (scancel, preemption) reaches srun, which passes it on; a second SIGTERM changes nothing.
exec srun --cpus-per-task="$SLURM_CPUS_PER_TASK" gigasmith-worker
