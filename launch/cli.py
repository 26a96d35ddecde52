"""What every launcher shares: flags, exit codes, and errors in one line."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from absl import app, flags, logging
from ml_collections import config_flags

from sparsity.config import ConfigError, nearest
from sparsity.train.guard import Preempted

# Exit codes. Anything else is a defect of the code, with its traceback.
DONE, BAD_INPUT, DIVERGED, PREEMPTED = 0, 2, 3, 4

EXIT_CODES = """exit codes: 0 done; 2 a mistake in the input, named in one line; 3 the run diverged
(recorded and terminal); 4 stopped by a signal, saved: rerun the same command to resume."""


def define_config() -> None:
    """Defines --config=FILE.py[:ARG], with --config.KEY=VALUE overrides."""
    what = "a run: FILE.py[:ARG]; override keys with --config.KEY=VALUE"
    # Keys that the file leaves at their defaults can be set too; run_config refuses those that do not exist.
    config_flags.DEFINE_config_file("config", None, what, lock_config=False, accept_new_attributes=True)


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


def main(body: Callable[[], int]) -> None:
    """Parses the flags, runs `body` and exits with its code; a user's mistake becomes one line."""

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
        try:
            return body()
        except ConfigError as error:
            _fail(str(error))
        except Preempted as stopped:
            print(stopped, file=sys.stderr)
            return PREEMPTED
        except KeyboardInterrupt:
            print("interrupted; rerun the same command to resume", file=sys.stderr)
            return PREEMPTED

    sys.modules["__main__"].__doc__ = f"{sys.modules['__main__'].__doc__}\n{EXIT_CODES}\n"
    app.run(guarded, flags_parser=_with_help(parse))


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


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
