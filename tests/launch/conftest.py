"""The launchers as a user meets them: processes, with exit codes and what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Forks itself for every command that it reads: to import jax and all that takes longer than most commands do.
SERVER = """
import gc, json, os, runpy, signal, sys, traceback
import launch.cli, sparsity.convert.checkpoints, sparsity.convert.prepare, sparsity.studies.runner

gc.freeze()
for line in sys.stdin:
    args, env, out, err = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(240)
        for path, stream in ((os.devnull, 0), (out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = args
        code = 0  # of a launcher that returns
        try:
            runpy.run_module(args[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without taking every module apart
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment():
    """A user's: one device, programs compiled as ever."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


@pytest.fixture(scope="session")
def launch_alone():
    """launch_alone("train", *flags): (exit code, what it printed, errors) of a process of its own."""

    def launch(module, *args, **more):
        command = [sys.executable, "-m", f"launch.{module}", *map(str, args)]
        env = environment() | more
        done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=240, check=False)
        return done.returncode, done.stdout, done.stderr

    return launch


class Launcher:
    """launch("train", *flags): the same of a fork of one process, which has imported everything; one at a time."""

    def __init__(self, server, directory):
        self._server, self._out, self._err = server, directory / "out", directory / "err"

    def start(self, module, *args):
        """Starts a launcher; its process."""
        self._out.write_text("")
        self._err.write_text("")
        job = [[f"launch.{module}", *map(str, args)], environment(), str(self._out), str(self._err)]
        self._server.stdin.write(f"{json.dumps(job)}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self):
        """(exit code, what it printed, errors) of the launcher that was started; -n where signal n killed it."""
        return int(self._server.stdout.readline()), self._out.read_text(), self._err.read_text()

    def __call__(self, module, *args):
        self.start(module, *args)
        return self.wait()


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """A `Launcher`."""
    command = [sys.executable, "-c", SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, stdin=pipe, stdout=pipe) as server:
        yield Launcher(server, tmp_path_factory.mktemp("launch"))
