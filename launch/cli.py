"""What every launcher shares: flags, exit codes, and errors in one line."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from sparsity import distributed
from sparsity.config import ConfigError, nearest, no_room
from sparsity.train.guard import Preempted

# Exit codes. Anything else is a defect of the code, with its traceback.
DONE, DEFECT, BAD_INPUT, DIVERGED, PREEMPTED, PEER_DIED = 0, 1, 2, 3, 4, distributed.PEER_DIED

EXIT_CODES = """exit codes: 0 done; 2 a mistake in the input, named in one line; 3 the run diverged
(recorded and terminal); 4 stopped by a signal, saved: rerun the same command to resume; 6 another
of several processes died: rerun all of them to resume."""

_LEAVING = 3600.0  # seconds that a process which is done waits for the others
_FAILING = 10.0  # and one that is not: they may fail alike

# What an accelerator is called, the extra that has JAX use it, and its files.
_DEV = Path("/dev")
_DEVICES = (("the GPU", "cuda", "nvidia[0-9]*"), ("the TPU", "tpu", "accel[0-9]*"))


def define_config() -> None:
    """Defines --config=FILE.py[:ARG], with --config.KEY=VALUE overrides."""
    what = "a run: FILE.py[:ARG]; override keys with --config.KEY=VALUE"
    # Keys that the file leaves at their defaults can be set too; run_config refuses those that do not exist.
    config_flags.DEFINE_config_file("config", None, what, lock_config=False, accept_new_attributes=True)


def define_processes() -> None:
    """Defines what says that several processes run the command together."""
    flags.DEFINE_string("coordinator", None, "of several processes: HOST:PORT at which the first one listens")
    flags.DEFINE_integer("processes", None, "how many run this command together, each with its own devices")
    flags.DEFINE_integer("process", None, "which of them this one is, from 0")
    what = "auto: on a TPU slice, under SLURM and Open MPI the processes find one another; off: each one runs alone"
    flags.DEFINE_enum("distributed", "auto", ["auto", "off"], what)
    flags.DEFINE_integer("heartbeat", 100, "seconds of silence after which a process counts as dead; the others end")


def say(text: str) -> None:
    """Prints `text`, of several processes in the first one."""
    if distributed.first():
        print(text)


def overrides() -> frozenset[str]:
    """The dotted config keys given on the command line."""
    return frozenset(config_flags.get_override_values(flags.FLAGS["config"]))


def command() -> str:
    """What was called, as a line for somebody else's shell: its workdir is W."""
    words, rest = [], iter(sys.argv[1:])
    for word in rest:
        name, equals, _ = word.partition("=")
        if name.lstrip("-") == "workdir":
            word = "--workdir=W"
            if not equals:
                next(rest, None)  # its value
        words.append(word)
    return shlex.join(["python", "-m", f"launch.{Path(sys.argv[0]).stem}", *words])


def main(body: Callable[[], int], more: str = "") -> None:
    """Parses the flags, runs `body` and exits with its code; a user's mistake becomes one line.

    `more` is said by --help, after what the launcher's module says.
    """

    def parse(argv: list[str]) -> list[str]:
        if "config" in flags.FLAGS:
            _check_config_file(argv)
        try:
            rest = flags.FLAGS(argv)
        except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            _fail(_first_line(error))
        if "config" in flags.FLAGS and flags.FLAGS["config"].value is None and not flags.FLAGS["help"].value:
            _fail("--config: required, e.g. --config=configs/quickstart.py:top_k")
        if len(rest) > 1:
            _fail(f"unexpected argument {rest[1]!r}; flags look like --name=value")
        return rest

    def guarded(_: list[str]) -> int:
        logging.set_verbosity(logging.ERROR)  # orbax reports every phase of every save
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside of training, too, it exits with its code
        code = _code(body)
        distributed.leave(code, _LEAVING if code in (DONE, DIVERGED) else _FAILING)
        return code

    sys.modules["__main__"].__doc__ = f"{sys.modules['__main__'].__doc__}\n{more}{EXIT_CODES}\n"
    app.run(guarded, flags_parser=_with_help(parse))


def _code(body: Callable[[], int]) -> int:
    """The exit code of `body`, what went wrong said."""
    try:
        if "coordinator" in flags.FLAGS:
            _join()
        return body()
    except ConfigError as error:
        _say_error(str(error))
        return BAD_INPUT
    except OSError as error:
        if not no_room(error):
            raise
        _say_error(f"{error.filename or 'a file'}: {error.strerror}")
        return BAD_INPUT
    except Preempted as stopped:
        if distributed.first():
            print(stopped, file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        print("interrupted; rerun the same command to resume", file=sys.stderr)
        return PREEMPTED
    except distributed.PeerDied as error:
        _say_error(str(error))
        return PEER_DIED
    except Exception as error:
        if not distributed.several():
            raise
        if distributed.lost(error):
            _say_error(f"another process died, or cannot be reached ({_first_line(error)[:200]})")
            return PEER_DIED
        traceback.print_exc()
        return DEFECT


def _join() -> None:
    """Finds the other processes, if there are any. Raises ConfigError."""
    given = flags.FLAGS
    if given.heartbeat < 1:
        raise ConfigError(f"--heartbeat: must be at least 1, got {given.heartbeat}")
    if given.distributed == "off":
        return
    if (job := distributed.find(given.coordinator, given.processes, given.process, os.environ)) is not None:
        distributed.join(job, given.heartbeat)


def listing(**tables: Iterable[str]) -> str:
    """What tables there are, for --help: a line "models: vit, mixer, ..." each, wrapped, and an empty one."""
    lines = (f"{what}: {', '.join(names)}" for what, names in tables.items())
    wrapped = (textwrap.fill(line, 96, subsequent_indent="  ", break_on_hyphens=False) for line in lines)
    return "\n".join([*wrapped, "", ""])


@functools.cache
def say_device() -> None:
    """Says in a line, once a process, that CPUs compute, unless JAX_PLATFORMS says so too.

    JAX falls back to them without a word where it was installed without the extra of the GPU or TPU that is there.
    """
    if "cpu" in (jax.config.jax_platforms or "").split(",") or jax.default_backend() != "cpu":
        return
    meant = "JAX_PLATFORMS=cpu says that this is meant"
    found = [(what, extra) for what, extra, pattern in _DEVICES if next(_DEV.glob(pattern), None)]
    if found:
        what, extra = found[0]
        there = f"JAX does not see {what} of this machine (pip install -e '.[{extra}]')"
    else:
        there = "JAX sees no accelerator"
    print(f"{there}: computing on {os.cpu_count()} CPU cores; {meant}", file=sys.stderr)


def settings(given: Sequence[str]) -> dict[str, str]:
    """The values of a repeated --set=key=value, by key. Raises ConfigError."""
    pairs = [setting.partition("=") for setting in given]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"--set: {key!r} is not key=value")
    return {key: value for key, _, value in pairs}


def _with_help(parse: Callable) -> Callable:
    def parser(argv: list[str]) -> list[str]:
        if {"--help", "-help", "-h"} & set(argv[1:]):
            app.usage(shorthelp=True, writeto_stdout=True)
            sys.exit(DONE)
        return parse(argv)

    return parser


def load_study_config(study: str) -> ModuleType:
    """The module configs/<study>.py, found from the current directory.

    Raises:
      ConfigError: there is none, or it declares no `sweep`.
    """
    path = Path("configs") / f"{study}.py"
    if not path.exists():
        have = sorted(str(p.relative_to("configs"))[:-3] for p in Path("configs").rglob("*.py"))
        where = f"; there are: {', '.join(have)}" if have else "; run from the repository's root"
        raise ConfigError(f"--study={study}: no file {path}{where}")
    spec = importlib.util.spec_from_file_location(f"configs.{study.replace('/', '.')}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise ConfigError(f"{path}: declares no sweep(scale)")
    return module


def _check_config_file(argv: list[str]) -> None:
    """Fails if --config names no file; absl would only fail later, far from the cause."""
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = flag.partition("=")
        path = (value or following).split(":")[0]
        if name in ("--config", "-config") and not Path(path).is_file():
            have = [str(p) for p in Path("configs").rglob("*.py")]
            _fail(f'--config: no file "{path}"{nearest(path, have) if have else ""}')


def _first_line(error: Exception) -> str:
    """The message of an exception raised while flags were parsed, on one line."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() would quote it
    text = str(text).split("Error: ")[-1]  # absl quotes a config file's whole traceback
    if missing := re.search(r"Flag (--\w+) must have a value", text):
        text = f"{missing[1]}: required"
    if "get_config" in text and isinstance(error, AttributeError):
        text = "--config: the file defines no get_config()"
    return " ".join(text.split())


def _say_error(message: str) -> None:
    """Says what is wrong; a process that is not the first says which it is, and not what the first one says too."""
    if not distributed.said_by_first(message):
        which = "" if distributed.first() else f"process {jax.process_index()}: "
        print(f"error: {which}{message}", file=sys.stderr)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
