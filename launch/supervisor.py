"""Runs a command again when it has died: what is behind the launchers' --restarts=N."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from absl import flags

from launch import cli
from sparsity.checkpoint import to_stderr

# A command that ends with one of these has said what it has to say.
_ENDED = (cli.DONE, cli.BAD_INPUT, cli.DIVERGED, cli.PREEMPTED)


def define() -> flags.FlagHolder[int]:
    """Defines --restarts=N."""
    text = "run as a child process, again whenever it dies: N times at most without a later checkpoint"
    return flags.DEFINE_integer("restarts", 0, text, lower_bound=0)


def unsupervised() -> list[str]:
    """The command of this process, less its --restarts: of a flag given twice the last one counts."""
    return [sys.executable, "-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:], "--restarts=0"]


def steps_saved(workdir: str | Path) -> int:
    """Steps of the last checkpoints in the workdir of a run, or, added up, of all runs of a study."""
    last: dict[Path, int] = {}
    for pattern in ("checkpoints/*", "runs/*/checkpoints/*"):
        for path in Path(workdir).glob(pattern):
            if path.name.isdigit():
                last[path.parent] = max(last.get(path.parent, 0), int(path.name))
    return sum(last.values())


def supervise(
    command: Sequence[str],
    restarts: int,
    progress: Callable[[], int],
    pause: float = 1.0,
    say: Callable[[str], None] = to_stderr,
) -> int:
    """Runs `command` until it ends; when it dies, again, and says so.

    It has died if a signal killed it, or if its exit code is none of the launchers': a defect, a device that is gone.
    SIGTERM is passed on to it, and it is not run again then; Ctrl-C reaches it without our help.

    Args:
      restarts: how often it is run again, at most, while `progress` does not rise.
      progress: such as the steps saved until now.
      pause: seconds before it is run again.
      say: told, in a line, of each death.

    Returns:
      Its exit code at last; 128 + n where signal n killed it.
    """
    with _Stopping() as stopping:
        died, reached = 0, progress()
        while True:
            code = stopping.run(command)
            if stopping.asked:
                return cli.PREEMPTED if code < 0 else code
            if code in _ENDED:
                return code
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            died, reached = (1, now) if (now := progress()) > reached else (died + 1, reached)
            if died > restarts:
                say(f"died ({how}) at step {reached}; not run again: {restarts} restarts brought it no further")
                return 128 - code if code < 0 else code
            say(f"died ({how}) at step {reached}; run again ({died} of {restarts} times)")
            time.sleep(pause)
            if stopping.asked:
                return cli.PREEMPTED


class _Stopping:
    """Within `with`, SIGTERM and Ctrl-C are noted, and SIGTERM is passed on to the child that is run."""

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen | None = None
        self._previous: dict[int, object] = {}

    def run(self, command: Sequence[str]) -> int:
        """Runs a child to its end; its exit code, -n where signal n killed it."""
        self._child = subprocess.Popen(command)
        if self.asked:  # before there was a child to tell
            self._child.terminate()
        return self._child.wait()

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGTERM and self._child is not None:
            self._child.terminate()

    def __enter__(self) -> _Stopping:
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
