"""Commands that die, and are run again."""

import os
import signal
import sys
import threading
import time

import pytest

from launch import cli
from launch.supervisor import steps_saved, supervise

# The n-th life of a command does what the n-th of its arguments says: "save 3, die", "exit 1", "wait".
COMMAND = """
import os, pathlib, signal, sys, time
work, *lives = sys.argv[1:]
work = pathlib.Path(work)
life = len(list(work.glob("life-*")))
for action in lives[life].split(", "):
    what, _, number = action.partition(" ")
    if what == "wait":
        if number:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(int(number)))
        (work / f"life-{life}").touch()
        time.sleep(60)
    (work / f"life-{life}").touch()
    if what == "save":
        (work / "checkpoints" / number).mkdir(parents=True)
    elif what == "exit":
        os._exit(int(number))
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def supervised(tmp_path):
    """supervised(restarts, *lives): (exit code, lives, what was said) of a supervised command."""

    def run(restarts, *lives):
        command, said = [sys.executable, "-S", "-E", "-c", COMMAND, str(tmp_path), *lives], []
        code = supervise(command, restarts, lambda: steps_saved(tmp_path), pause=0, say=said.append)
        return code, len(list(tmp_path.glob("life-*"))), said

    return run


@pytest.mark.parametrize(
    ("restarts", "lives", "code"),
    [
        (2, ["die", "die", "exit 0"], 0),
        (2, ["die", "die", "die"], 128 + 9),
        (1, ["exit 1", "exit 1"], 1),
        (1, ["save 0, die", "save 2, die", "save 4, die", "exit 0"], 0),  # each gets further
        (1, ["save 2, die", "die"], 128 + 9),
        (3, ["exit 2"], cli.BAD_INPUT),
        (3, ["die", "exit 3"], cli.DIVERGED),
        (3, ["exit 4"], cli.PREEMPTED),
    ],
)
def test_a_command_that_dies_is_run_again_while_it_gets_further(supervised, restarts, lives, code):
    assert supervised(restarts, *lives)[:2] == (code, len(lives))


def test_each_death_is_said_in_a_line(supervised):
    assert supervised(1, "save 7, die", "exit 1")[2] == [
        "died (SIGKILL) at step 7; run again (1 of 1 times)",
        "died (exit code 1) at step 7; not run again: 1 restarts brought it no further",
    ]


@pytest.mark.parametrize("life", ["wait 4", "wait"], ids=["that saves and exits", "that cannot"])
def test_sigterm_reaches_the_command_which_is_not_run_again(supervised, tmp_path, life):
    def terminate():
        deadline = time.monotonic() + 30
        while not (tmp_path / "life-0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=terminate)
    thread.start()
    assert supervised(3, life, "exit 0") == (cli.PREEMPTED, 1, [])
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_steps_of_a_study_are_those_of_its_runs(tmp_path):
    for name in ("runs/a/checkpoints/4", "runs/a/checkpoints/6", "runs/a/checkpoints/8.tmp", "runs/b/checkpoints/0"):
        (tmp_path / name).mkdir(parents=True)
    assert steps_saved(tmp_path) == steps_saved(tmp_path / "runs" / "a") == 6
    assert steps_saved(tmp_path / "none") == 0
