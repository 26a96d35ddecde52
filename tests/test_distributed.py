"""What several processes agree on; under `multiprocess`, two and four real ones on CPUs that talk by gloo."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import cli
from sparsity import distributed, spmd
from sparsity.config import ConfigError
from sparsity.train.guard import StopSignals
from sparsity.writer import read_metrics

ROOT = Path(__file__).parents[1]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
FOUND = distributed.Job()


@pytest.mark.parametrize(
    ("given", "environ", "job"),
    [
        ((None, None, None), {}, None),
        (("host:1", 2, 1), SLURM, distributed.Job("host:1", 2, 1)),
        (("host:1", 1, 0), SLURM, None),  # what is given is meant
        ((None, None, None), SLURM, FOUND),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "1"}, None),
        ((None, None, None), {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # in a batch script, without srun
        ((None, None, None), OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:1"}, FOUND),
        ((None, None, None), OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "localhost"}, None),  # as when compiling ahead of time
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "a,b"}, FOUND),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, FOUND),
    ],
)
def test_other_processes_are_looked_for_where_there_is_a_sign_of_them(given, environ, job):
    assert distributed.find(*given, environ) == job


@pytest.mark.parametrize(
    ("attributes", "job"),
    [
        ({"worker-network-endpoints": "a:1:10.0.0.1,b:1:10.0.0.2"}, FOUND),
        ({"worker-network-endpoints": "a:1:10.0.0.1", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\n"}, FOUND),
        ({"worker-network-endpoints": "a:1:10.0.0.1", "tpu-env": "ZONE: 'z'\n"}, None),
        ({}, None),
    ],
)
def test_a_host_with_tpus_asks_the_metadata_server_for_the_hosts_of_its_slice(attributes, job):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
            self.send_response(404 if value is None or self.headers["Metadata-Flavor"] != "Google" else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"TPU_ML_PLATFORM": "JAX", "GCE_METADATA_IP": f"localhost:{server.server_port}"}
        assert distributed.find(None, None, None, environ) == job
        assert distributed.find(None, None, None, environ | {"TPU_SKIP_MDS_QUERY": "1"}) is None
        server.shutdown()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 2, None), "--process: missing; --coordinator, --processes, --process are given together"),
        ((None, None, 0), "--coordinator: missing"),
        (("host", 2, 0), '--coordinator: HOST:PORT is needed, got "host"'),
        (("host:1", 0, 0), "--processes: must be at least 1, got 0"),
        (("host:1", 2, 2), "--process: must be in 0..1, got 2"),
    ],
)
def test_flags_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        distributed.find(*given, {})


def test_open_mpi_that_does_not_say_where_it_began_asks_for_flags():
    with pytest.raises(ConfigError, match=r"--processes=4 --process=\$OMPI_COMM_WORLD_RANK"):
        distributed.find(None, None, None, OPEN_MPI)


def test_a_process_alone_agrees_with_itself_and_nothing_is_started():
    assert distributed.agreed(lambda: [1, "a"]) == [1, "a"]
    assert distributed.gathered({"a": None}) == [{"a": None}]
    assert (distributed.first(), distributed.several(), distributed.said_by_first("x", 0)) == (True, False, False)
    distributed.leave(1, 0)
    assert not jax.distributed.is_initialized()


def test_processes_stop_together_at_the_answer_to_what_they_last_asked(monkeypatch):
    """A signal that comes after the question is one of the next step, in every process."""
    monkeypatch.setattr(distributed, "several", lambda: True)
    mesh = spmd.make_mesh(spmd.MeshConfig(data=4, model=2))
    with StopSignals(mesh) as stop, jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        stop.ask()
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.agreed()
        stop.ask()
        assert stop.agreed()


TINY = [
    "--config=configs/quickstart.py:top_k",
    "--config.steps=60",
    "--config.batch=32",
    "--config.model.d_model=16",
    "--config.model.layers=1",
    "--config.model.mlp.d_ff=32",
    "--config.model.mlp.sparsifier.k=4",
    "--config.mesh.model=2",
    "--config.every.checkpoint=20",
    "--config.every.eval=40",
    "--config.evals.names=('accuracy','calibration','sparsity','neurons','cost')",
]


def free_port():
    """Of those that SLURM's and Open MPI's jobs may have too: JAX takes it from the number of the job."""
    for port in np.random.default_rng().permutation(np.arange(61440, 65536)).tolist():
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return port
    raise AssertionError("no port is free")


# How a process learns of the others: its flags and its environment.
def by_flags(port, n, i):
    return [f"--coordinator=localhost:{port}", f"--processes={n}", f"--process={i}"], {}


def by_slurm(port, n, i):
    where = {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(port - 61440)}
    return [], where | {"SLURM_NTASKS": str(n), "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}


def by_open_mpi(port, n, i):
    where = {"OMPI_MCA_orte_hnp_uri": f"{(port - 61440) * 4096}.0;tcp://127.0.0.1:1"}
    numbers = {"SIZE": n, "RANK": i, "LOCAL_RANK": i}
    return [], where | {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in numbers.items()}


class Together:
    """So many processes of a command, each with devices of its own; what they say goes to files."""

    def __init__(self, folder, processes, devices, command, known=by_flags):
        folder.mkdir(parents=True, exist_ok=True)
        self.said = [(folder / f"{i}.out", folder / f"{i}.err") for i in range(processes)]
        self.all, port = [], free_port()
        for i, (out, err) in enumerate(self.said):
            given, environ = known(port, processes, i)
            env = os.environ | environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
            with open(out, "w") as stdout, open(err, "w") as stderr:
                args = [sys.executable, "-m", *command, *given]
                self.all.append(subprocess.Popen(args, cwd=ROOT, env=env, stdout=stdout, stderr=stderr))

    def codes(self, seconds=400):
        """Exit codes of all, killed if they take longer."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.all]
        finally:
            for process in self.all:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    def text(self, i):
        """What a process printed, and on the error stream, without the chatter of the collectives."""
        of = lambda file: "".join(line for line in file.read_text().splitlines(keepends=True) if "[Gloo]" not in line)
        out, err = map(of, self.said[i])
        return out, err


def launch(folder, module, *flags, known=by_flags):
    """Two processes of a launcher, with two devices each."""
    return Together(folder, 2, 2, [f"launch.{module}", *flags, "--heartbeat=10"], known)


def wait_for_steps(workdir, steps):
    deadline = time.monotonic() + 300
    while len([r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "train"]) < steps:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_of(workdir):
    return [r["step"] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "train"]


def digests_of(workdir, step):
    return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())["digests"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two processes with two devices each, data 2 x model 2, and what both said."""
    folder = tmp_path_factory.mktemp("trained")
    both = launch(folder, "train", *TINY, f"--workdir={folder / 'w'}")
    assert both.codes() == [cli.DONE, cli.DONE], both.text(0) + both.text(1)
    return folder / "w", both


@pytest.mark.multiprocess
def test_two_processes_train_one_run_and_the_first_alone_writes_and_speaks(trained):
    workdir, both = trained
    assert steps_of(workdir) == list(range(60))
    assert json.loads((workdir / "outcome.json").read_text())["status"] == "finished"
    assert (workdir / "report" / "index.html").exists()
    (out, err), (other_out, other_err) = both.text(0), both.text(1)
    assert "accuracy" in out
    assert "step 60/60" in err
    assert (other_out.replace("\n", ""), other_err) == ("", "")


@pytest.mark.multiprocess
def test_any_number_of_processes_restores_the_state_exactly_and_takes_the_same_step(trained, tmp_path):
    workdir, _ = trained
    found = {}
    for processes, devices, mesh in ((1, 1, "1x1"), (2, 2, "4x1"), (4, 1, "2x2"), (1, 4, "1x4")):
        out = tmp_path / f"{processes}_{mesh}.npz"
        command = ["tests.replicas", f"--workdir={workdir}", f"--out={out}", f"--mesh={mesh}"]
        together = Together(tmp_path / out.stem, processes, devices, command)
        assert together.codes() == [0] * processes, together.text(0)
        with np.load(out) as arrays:
            found[processes, mesh] = dict(arrays)
    one = found.pop((1, "1x1"))
    assert {key: int(x["rows"]) for key, x in found.items()} == {(2, "4x1"): 16, (4, "2x2"): 16, (1, "1x4"): 32}
    whole = np.sqrt(sum(np.sum(x**2) for name, x in one.items() if name.startswith("grads/")))
    for other in found.values():
        assert other.keys() == one.keys()
        assert abs(other["loss"] - one["loss"]) < 1e-6
        np.testing.assert_allclose(other["logits"], one["logits"], rtol=1e-4, atol=1e-5)
        for name in one:
            if name.startswith("params/"):
                np.testing.assert_array_equal(other[name], one[name], err_msg=name)
            elif name.startswith("grads/"):
                # The softmax does not see a bias of the keys: its true gradient is zero, and all of it is rounding.
                scale = whole if name.endswith("key/bias") else np.linalg.norm(one[name])
                assert np.linalg.norm(other[name] - one[name]) <= 1e-5 * scale, name


@pytest.mark.multiprocess
def test_sigterm_to_one_of_two_stops_both_at_one_step_and_the_run_resumes(trained, tmp_path):
    whole, _ = trained
    workdir = tmp_path / "w"
    both = launch(tmp_path / "a", "train", *TINY, f"--workdir={workdir}")
    wait_for_steps(workdir, 3)
    both.all[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert both.codes(60) == [cli.PREEMPTED, cli.PREEMPTED], both.text(0) + both.text(1)
    assert time.monotonic() - began < 10
    steps = steps_of(workdir)
    assert max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == len(steps) < 60
    assert f"stopped after step {len(steps)}; rerun the same command to resume" in both.text(0)[1]
    assert both.text(1)[1] == ""
    again = launch(tmp_path / "b", "train", *TINY, f"--workdir={workdir}")
    assert again.codes() == [cli.DONE, cli.DONE], again.text(0)
    assert steps_of(workdir) == list(range(60))
    assert digests_of(workdir, 60) == digests_of(whole, 60)


@pytest.mark.multiprocess
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_is_killed_the_other_exits_within_the_heartbeat(victim, tmp_path):
    both = launch(tmp_path, "train", *TINY, "--config.steps=100000", f"--workdir={tmp_path / 'w'}")
    wait_for_steps(tmp_path / "w", 3)
    both.all[victim].kill()
    began = time.monotonic()
    codes = both.codes(60)
    assert time.monotonic() - began < 10 + 5  # the heartbeat, and what a busy machine takes
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == cli.PEER_DIED, both.text(1 - victim)


@pytest.mark.multiprocess
def test_a_checkpoint_that_one_of_two_cannot_read_is_damaged_for_both_and_it_is_said_once(tmp_path):
    workdir = tmp_path / "w"
    # Units enough for files of their own: numbers of a kilobyte or less stand among the names, in one file of all.
    wide = ("--config.mesh.model=4", "--config.model.mlp.d_ff=512")
    few = (*wide, "--config.steps=4", "--config.every.checkpoint=2", f"--workdir={workdir}")
    assert launch(tmp_path / "a", "train", *TINY, *few).codes() == [cli.DONE, cli.DONE]
    # What the second process saved, the first one does not read: hidden units are split between them.
    damaged = list((workdir / "checkpoints" / "4" / "state").rglob("ocdbt.process_1/d/*"))
    assert damaged
    for file in damaged:
        file.write_bytes(file.read_bytes()[:10])
    both = launch(tmp_path / "b", "evaluate", f"--workdir={workdir}", "--evals=accuracy", known=by_slurm)
    assert both.codes() == [cli.DONE, cli.DONE], both.text(0) + both.text(1)
    (out, err), other = both.text(0), both.text(1)
    assert "checkpoint of step 2 of 4" in out
    assert err.count("4 is damaged") == 1
    assert other[1] == ""
    both = launch(tmp_path / "c", "train", *TINY, *few, "--config.seed=1", known=by_open_mpi)
    assert both.codes() == [cli.BAD_INPUT, cli.BAD_INPUT]
    assert re.fullmatch(r"error: workdir .*: made with another config \(seed: 0 there, .*\n", both.text(0)[1])
    assert both.text(1)[1] == ""
