#!/usr/bin/env bash
# Runs a launcher of this repository under Slurm: submits itself, and in the job starts its processes.
#
#   bash launch/slurm.sh [--print] [FLAGS of sbatch, as --name=value] launch.train --config=... --workdir=W
#   bash launch/slurm.sh --nodes=4 --time=24:00:00 launch.train ...                   one process a node, with its GPUs
#   bash launch/slurm.sh --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch.train ...           one process a GPU
#   bash launch/slurm.sh --array=0-15 launch.reproduce --study=price2024/table2 --workdir=W      each --shard=i/16
#
# From the repository's root, with its .venv or PYTHON set to another interpreter, on a file system that all nodes
# share, W too. `sbatch FLAGS launch/slurm.sh launch.train ...` does the same, and within an allocation (salloc) the
# processes start at once. --print shows the commands and runs nothing.
#
# A minute before the time limit, or when Slurm preempts the job and says so, the processes are told to stop: they save
# their step (exit code 4), and the job is put back into the queue, where the same command resumes it. --signal and
# --no-requeue among FLAGS change that. Other exit codes are those of `python -m launch.train --help`.
#
# Of an array each task does the runs of one shard of a study; when all have ended, the same command without --array
# writes the study's results. To submit some of the tasks again, e.g. --array=3,7, say of how many: SHARDS=16.
# GPUs are to be asked for by node: with --gpus-per-task each process would see one and look for that of its number.
#SBATCH --job-name=sparsity
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
set -euo pipefail

usage() {
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

# This and the next stand in tpu_vm.sh too: sbatch runs a copy of this file, away from its neighbours.
fail() {
  echo "error: $1" >&2
  exit 2
}

# Words as a shell reads them, quoted where they must be.
quoted() {
  local word out=()
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=@%,+-]+$ ]]; then out+=("$word"); else out+=("${word@Q}"); fi
  done
  echo "${out[*]}"
}

# i/n of this task of an array.
shard() {
  local n=${SHARDS:-$SLURM_ARRAY_TASK_COUNT} first=${SLURM_ARRAY_TASK_MIN:-0} last=$SLURM_ARRAY_TASK_MAX
  if [[ -z "${SHARDS:-}" ]] && ((first != 0 || last != n - 1)); then
    fail "--array: $first to $last are not all shards from 0 on; set SHARDS to the number of them"
  fi
  ((SLURM_ARRAY_TASK_ID < n)) || fail "--array: there is no shard $SLURM_ARRAY_TASK_ID of SHARDS=$n"
  echo "$SLURM_ARRAY_TASK_ID/$n"
}

# Starts the processes, waits for them, and puts the job back into the queue if it was told to stop.
work() {
  local code="" stopped="" processes
  # JAX gives each process under Slurm the GPU of its number on the node: an only one would have the first alone.
  if [[ -n "${SLURM_GPUS_ON_NODE:-}" && "${SLURM_NTASKS_PER_NODE:-1}" == 1 ]]; then
    JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((SLURM_GPUS_ON_NODE - 1)))
    export JAX_LOCAL_DEVICE_IDS
  fi
  # srun has not taken this over from sbatch since Slurm 22.05.
  if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
  "$@" &
  processes=$!
  trap 'stopped=1; kill -TERM "$processes" 2> /dev/null || true' TERM # srun hands it on to all of them
  until [[ -n "$code" ]]; do
    if wait "$processes"; then code=0; else code=$?; fi
    if kill -0 "$processes" 2> /dev/null; then code=""; fi # it was the signal that ended the wait
  done
  # A job that was cancelled is told to stop too; Slurm itself requeues those that it preempts.
  if [[ -n "$stopped" && ! "$code" =~ ^[023]$ ]]; then
    if [[ "$(squeue --noheader --format=%T --jobs="$job")" == RUNNING ]]; then
      echo "told to stop (exit code $code): back into the queue" >&2
      scontrol requeue "$job"
    fi
  fi
  exit "$code"
}

dry=""
if [[ "${1:-}" == --print ]]; then
  dry=1
  shift
fi
case "${1:-}" in --help | -h)
  usage
  exit
  ;;
esac
flags=()
while [[ "${1:-}" == -* ]]; do
  [[ "$1" == --* ]] || fail "$1: write flags of sbatch out, as --name=value"
  flags+=("$1")
  shift
done
[[ "${1:-}" == *.* ]] || fail "say what to run, e.g. launch.train --config=configs/quickstart.py:top_k --workdir=runs/one"

python=${PYTHON:-}
if [[ -z "$python" ]]; then
  if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else python=python; fi
fi
command=(srun --kill-on-bad-exit=1 "$python" -m "$@")

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  [[ -f launch/slurm.sh ]] || fail "run it from the repository's root"
  submit=(sbatch "${flags[@]}" launch/slurm.sh "$@")
  if [[ -z "$dry" ]]; then exec "${submit[@]}"; fi
  quoted "${submit[@]}"
  echo "# and in the job"
  quoted "${command[@]}"
  exit
fi

((${#flags[@]} == 0)) || fail "${flags[0]}: the job is there already"
job=$SLURM_JOB_ID
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  if [[ "$1" == launch.reproduce && " $* " != *" --shard"* ]]; then
    part=$(shard)
    command+=(--shard="$part")
  fi
fi
if [[ -n "$dry" ]]; then
  quoted "${command[@]}"
else
  work "${command[@]}"
fi
