#!/usr/bin/env bash
# Runs this repository on a Cloud TPU VM: one host, or all workers of a slice.
#
#   export TPU=name ZONE=us-central2-b TYPE=v4-32
#   bash launch/tpu_vm.sh create
#   bash launch/tpu_vm.sh copy                      the last commit, to ~/sparsity of every worker
#   bash launch/tpu_vm.sh install                   a virtual environment with the tpu extra, then SETUP
#   bash launch/tpu_vm.sh run launch.train --config=... --workdir=W        detached, on every worker
#   bash launch/tpu_vm.sh status                    of the TPU, and of the run on every worker
#   bash launch/tpu_vm.sh logs [DIR]                every worker's log, as DIR/WORKER.log; DIR is logs/TPU
#   bash launch/tpu_vm.sh stop                      the run saves its step and ends
#   bash launch/tpu_vm.sh delete
#   bash launch/tpu_vm.sh babysit launch.train --config=... --workdir=W    all of these until the run has ended
#   bash launch/tpu_vm.sh launch.train --config=... --workdir=W            copy, install, and run in the foreground
#
# --print before any of them shows the commands and runs nothing. Exit codes: gcloud's where it fails, 2 for a
# mistake in the words above, else those of `python -m launch.train --help`.
#
# babysit creates the TPU if there is none, deletes and creates it again when it was preempted, and starts the run
# where none is going on: the same command resumes it from W, which therefore must outlive the TPU and be one
# directory for all workers, such as a mounted disk. It keeps nothing in mind and may itself be stopped and started
# again. It ends with the run: finished (0), a mistake in the input (2), diverged (3); or with 1, when it gives up.
#
# Environment: TPU, ZONE; PROJECT, by default gcloud's own; and of
#   create   TYPE; VERSION, the software, by default what Google lists for TYPE; SPOT=1; QUEUED=1, as a queued
#            resource, to be waited for; CREATE_FLAGS, more flags of gcloud's, separated by blanks. delete, status and
#            babysit have to be told QUEUED=1 too
#   install  SETUP, a command for every worker, e.g. 'sudo mount -t nfs HOST:/share /mnt/runs'
#   run      TFDS_DATA_DIR and LIBTPU_INIT_ARGS are handed on
#   babysit  POLL, seconds between looks (60); RESTARTS of a run that crashed (10); TRIES, failures of gcloud's one
#            after the other, of which a lack of capacity is one (1000)
set -euo pipefail

usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

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

run() {
  if [[ -n "$dry" ]]; then quoted "$@"; else "$@"; fi
}

tpu_vm() {
  run gcloud compute tpus tpu-vm "$1" "$TPU" "${where[@]}" "${@:2}"
}

queued_resources() {
  run gcloud compute tpus queued-resources "$1" "$TPU" "${where[@]}" "${@:2}"
}

# Runs a command on every worker; words after it are flags of gcloud's.
on_workers() {
  tpu_vm ssh --worker=all --command="$1" "${@:2}"
}

# Checks TYPE and sets VERSION, before anything is asked for.
settle() {
  [[ -n "${TYPE:-}" ]] || fail "set TYPE to the kind of TPU, e.g. v4-32"
  [[ -z "${VERSION:-}" ]] || return 0
  case "$TYPE" in
    v6e-*) VERSION=v2-alpha-tpuv6e ;;
    v5p-*) VERSION=v2-alpha-tpuv5 ;;
    v5litepod-*) VERSION=v2-alpha-tpuv5-lite ;;
    v[234]-*) VERSION=tpu-ubuntu2204-base ;;
    *) fail "set VERSION to the software of a $TYPE; gcloud compute tpus tpu-vm versions list names them" ;;
  esac
}

request() {
  local more=()
  read -ra more <<< "${SPOT:+--spot }${CREATE_FLAGS:-}"
  if [[ -n "${QUEUED:-}" ]]; then
    queued_resources create --node-id="$TPU" --accelerator-type="$TYPE" --runtime-version="$VERSION" "${more[@]}"
  else
    tpu_vm create --accelerator-type="$TYPE" --version="$VERSION" "${more[@]}"
  fi
}

create() {
  request || return
  [[ -n "${QUEUED:-}" ]] || return 0
  if [[ -n "$dry" ]]; then
    state
    return
  fi
  local now
  while now=$(state); do
    case "$now" in
      READY) return 0 ;;
      FAILED | SUSPENDED | MISSING) return 1 ;;
    esac
    sleep "$poll"
  done
  return 1
}

delete() {
  if [[ -n "${QUEUED:-}" ]]; then queued_resources delete --force --quiet; else tpu_vm delete --quiet; fi
}

copy() {
  local archive=sparsity.tar.gz
  if [[ -z "$dry" ]]; then
    archive=$scratch/$archive
    if [[ -n "$(git -C "$root" status --porcelain)" ]]; then
      echo "warning: uncommitted changes stay here; the last commit is what runs" >&2
    fi
  fi
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU:" "${where[@]}" --worker=all &&
    on_workers "mkdir -p sparsity/logs && tar -xzf sparsity.tar.gz -C sparsity"
}

# The images of v4 and before have Python 3.10: there uv brings one that is new enough.
install() {
  local new_enough="python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' && python3 -m venv .venv"
  local other="rm -rf .venv && python3 -m pip install -q --user uv && python3 -m uv venv -q --seed --python 3.12 .venv"
  local packages=".venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
  on_workers "cd sparsity && { test -x .venv/bin/pip || { $new_enough; } || { $other; }; } && $packages && \
{ ${SETUP:-true}; } && touch .venv/installed"
}

# `python -m WORDS` with the environment that is handed on.
job() {
  local name words=()
  for name in TFDS_DATA_DIR LIBTPU_INIT_ARGS; do
    if [[ -n "${!name:-}" ]]; then words+=("$name=$(quoted "${!name}")"); fi
  done
  words+=(.venv/bin/python -m "$(quoted "$@")")
  echo "${words[*]}"
}

foreground() {
  on_workers "cd sparsity && $(job "$@")"
}

# The lock is the run's as long as it lives, even after kill -9; its code is written when it has ended by itself.
start() {
  local whole
  whole=$(quoted "trap : TERM; $(job "$@"); echo \$? > logs/run.code")
  on_workers "cd sparsity && exec 9> logs/run.lock && \
{ flock -n 9 || { echo 'error: a run is going on here' >&2; exit 1; }; } && \
{ rm -f logs/run.code; setsid bash -c $whole >> logs/run.log 2>&1 < /dev/null & echo \$! > logs/run.pid; }"
}

stop() {
  on_workers "cd sparsity && if flock -n logs/run.lock true; then echo 'no run is going on'; \
else kill -TERM -- -\$(cat logs/run.pid); fi"
}

# What became of the run on each worker, a line each: absent (nothing is installed), running, ended CODE, or ended.
progress="cd sparsity 2> /dev/null && test -e .venv/installed || { echo absent; exit; }; \
if flock -n logs/run.lock true; then echo ended \$(cat logs/run.code 2> /dev/null); else echo running; fi"

# The TPU's state, or that of the queued resource that is to become it; MISSING if there is none.
state() {
  local now
  if [[ -n "${QUEUED:-}" ]]; then
    now=$(described queued_resources "value(state.state)") || return
    if [[ -n "$dry" || "$now" != ACTIVE ]]; then echo "$now"; fi
    [[ -n "$dry" || "$now" == ACTIVE ]] || return 0
  fi
  described tpu_vm "value(state)"
}

described() {
  if [[ -n "$dry" ]]; then
    "$1" describe --format="$2"
  elif ! "$1" describe --format="$2" 2> "$scratch/errors"; then
    if ! grep -q NOT_FOUND "$scratch/errors"; then
      cat "$scratch/errors" >&2
      return 1
    fi
    echo MISSING
  fi
}

status() {
  if [[ -n "$dry" ]]; then
    state
    on_workers "$progress"
    return
  fi
  local now
  now=$(state) || return
  echo "$TPU: $now"
  [[ "$now" != READY ]] || on_workers "$progress"
}

logs() {
  run mkdir -p "$1" && on_workers "cat sparsity/logs/run.log" --output-directory="$1"
}

# One look, and what follows from it. Says wait, worked, crashed or end CODE; fails where gcloud does.
look() {
  local now
  now=$(state) || return
  case "$now" in
    READY) look_at_run "$@" ;;
    MISSING) request >&2 && echo worked ;;
    PREEMPTED | TERMINATED | FAILED | SUSPENDED)
      echo "$TPU: $now; it is created again" >&2
      delete >&2 && request >&2 && echo worked
      ;;
    STOPPED)
      echo "$TPU: STOPPED, which is no preemption: start it or delete it" >&2
      echo "end 1"
      ;;
    *)
      echo "$TPU: $now" >&2
      echo wait
      ;;
  esac
}

look_at_run() {
  local found
  found=$(on_workers "$progress" | sort -u | paste -sd ,) || return
  case ",$found," in
    ,,) return 1 ;;
    *,running,*) echo wait ;;
    *,absent,*) copy >&2 && install >&2 && start "$@" >&2 && echo worked ;;
    ",ended 0,") echo "end 0" ;;
    *",ended 2,"*) echo "end 2" ;;
    *",ended 3,"*) echo "end 3" ;;
    *)
      echo "$TPU: $found; the run is started again" >&2
      start "$@" >&2 || return
      # 4 is a signal's; without a code the worker itself was started again.
      if [[ ",$found," =~ ,ended\ ([^4]|4[^,]) ]]; then echo crashed; else echo worked; fi
      ;;
  esac
}

babysit() {
  local said failures=0 crashes=0
  if [[ -n "$dry" ]]; then
    echo "# every $poll s; what follows as the state asks for it"
    state && delete && request && copy && install && start "$@" && on_workers "$progress"
    return
  fi
  while true; do
    if said=$(look "$@"); then failures=0; else failures=$((failures + 1)); fi
    case "$said" in
      crashed) crashes=$((crashes + 1)) ;;
      "end "*)
        echo "$TPU: the run has ended with code ${said#end }; the TPU is left as it is" >&2
        return "${said#end }"
        ;;
    esac
    if ((failures >= ${TRIES:-1000})); then
      echo "error: $TPU: gcloud failed $failures times, one after the other" >&2
      return 1
    fi
    if ((crashes > ${RESTARTS:-10})); then
      echo "error: $TPU: the run crashed $crashes times; see bash launch/tpu_vm.sh logs" >&2
      return 1
    fi
    sleep "$poll"
  done
}

dry="" poll=${POLL:-60}
if [[ "${1:-}" == --print ]]; then
  dry=1
  shift
fi
case "${1:-}" in
  --help | -h)
    usage
    exit
    ;;
  "") fail "say what to do, e.g. launch.train --config=configs/quickstart.py:top_k --workdir=runs/one, or --help" ;;
esac
: "${TPU:?set TPU to the name of the TPU VM}"
: "${ZONE:?set ZONE to its zone}"
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z "$dry" ]]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
fi
case "$1" in create | babysit) settle ;; esac

case "$1" in
  create | copy | install | status | stop | delete)
    [[ $# -eq 1 ]] || fail "$1: takes nothing more, got $2"
    "$1"
    ;;
  logs)
    [[ $# -le 2 ]] || fail "logs: takes one directory"
    logs "${2:-logs/$TPU}"
    ;;
  run | babysit)
    [[ $# -ge 2 ]] || fail "$1: say what to run, e.g. launch.train --config=configs/quickstart.py:top_k --workdir=W"
    if [[ "$1" == run ]]; then start "${@:2}"; else babysit "${@:2}"; fi
    ;;
  *.*) copy && install && foreground "$@" ;;
  *) fail "no \"$1\": there are create, copy, install, run, status, logs, stop, delete, babysit, or a module" ;;
esac
