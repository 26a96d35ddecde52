#!/usr/bin/env bash
# Runs a command of this repository on a one-host TPU VM (v4-8, v5litepod-8, ...).
#
#   TPU=name ZONE=us-central2-b bash launch/tpu_vm.sh [--print] launch.train --config=... --workdir=W
#
# Copies the repository, installs it with the tpu extra in a virtual environment, and runs
# `python -m ARGS` there, as of the last commit. --print shows the commands and runs nothing. To stop or
# create the TPU itself use gcloud; rerunning this command resumes the run in its workdir.
set -euo pipefail

dry=""
if [[ "${1:-}" == "--print" ]]; then
  dry=1
  shift
fi
: "${TPU:?set TPU to the name of the TPU VM}"
: "${ZONE:?set ZONE to its zone}"
if [[ $# -eq 0 ]]; then
  echo "error: say what to run, e.g. launch.train --config=configs/quickstart.py:top_k --workdir=runs/one" >&2
  exit 2
fi

run() {
  if [[ -n "$dry" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
archive=$(mktemp -t sparsity-XXXXXX.tar.gz)
trap 'rm -f "$archive"' EXIT
target=(--zone="$ZONE" --worker=0)

if [[ -n "$(git -C "$root" status --porcelain)" ]]; then
  echo "warning: uncommitted changes stay here; the last commit is what runs" >&2
fi
run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$TPU:sparsity.tar.gz" "${target[@]}"
install="mkdir -p sparsity && tar -xzf sparsity.tar.gz -C sparsity && cd sparsity && \
{ test -d .venv || python3 -m venv .venv; } && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
run gcloud compute tpus tpu-vm ssh "$TPU" "${target[@]}" --command="$install"
run gcloud compute tpus tpu-vm ssh "$TPU" "${target[@]}" \
  --command="cd sparsity && ${TFDS_DATA_DIR:+TFDS_DATA_DIR=$TFDS_DATA_DIR }.venv/bin/python -m $(printf '%q ' "$@")"
