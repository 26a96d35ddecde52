"""From a ConfigDict to frozen dataclasses, strictly.

Generic: this file knows no model, no optimizer and no dataset. A dataclass of
settings lives beside what it configures and checks itself in `__post_init__`;
`build` turns a mapping into it and refuses whatever does not fit, in one line
that says what, where, and the nearest valid choice.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import errno
import functools
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_TABLE, _LATER = "table", "later"
_LONGEST = 2000  # letters of a message
_INTEGERS = 1 << 63
_hints = functools.cache(typing.get_type_hints)  # by class; to read its annotations is most of building a config


class ConfigError(ValueError):
    r"""A user's mistake in a config: the message is one line, fit to be printed alone, whatever it quotes.

    >>> print(ConfigError("no file \x1b[31mred\nor blue"))
    no file \x1b[31mred\nor blue
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def no_room(error: BaseException) -> str:
    """The system's words for a disk that is full or takes nothing, if an error of anybody has them; else empty.

    That is no defect of the code.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    return next((words for words in map(os.strerror, numbers) if words in str(error)), "")


def nearest(word: str, choices: Iterable[str]) -> str:
    """`'; did you mean "x"?'` for the closest choice, else `'; valid: a, b, c'`."""
    choices = sorted(map(str, choices))
    if not choices:
        return "; there are none"
    close = difflib.get_close_matches(_shown(word), choices, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else f"; valid: {', '.join(choices)}"


def lookup(table: Mapping[str, T], name: str, what: str, error: type[Exception] = ConfigError) -> T:
    """`table[name]`; an unknown name raises `error` naming the nearest valid one."""
    if not isinstance(name, str) or name not in table:
        raise error(f'unknown {what} "{_shown(name)}"{nearest(name, table)}')
    return table[name]


def _shown(value: Any) -> str:
    """A value in a message, text without quotation marks."""
    return value if isinstance(value, str) else _quoted(value)


def _quoted(value: Any) -> str:
    """A value in a message: its `repr`, if it has one: Python writes no integer of 5000 digits."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a huge {type(value).__name__}"


def one_of(table: Mapping[str, type], default: Any = dataclasses.MISSING, *, later: bool = False) -> Any:
    """A dataclass field holding one of the table's dataclasses, chosen by its `name` key; `later` as in `later()`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Circle:
    ...     radius: float = 1.0
    >>> @dataclasses.dataclass(frozen=True)
    ... class Drawing:
    ...     shape: object = one_of({"circle": Circle})
    >>> build(Drawing, {"shape": {"name": "circle", "radius": 2.0}})
    Drawing(shape=Circle(radius=2.0))
    """
    return dataclasses.field(default=default, metadata={_TABLE: table} | ({_LATER: True} if later else {}))


def later(default: Any) -> Any:
    """A dataclass field that came when there were runs without it.

    At its default it is left out of the plain values of a config: those runs keep their hash, and their workdirs.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Circle:
    ...     radius: float = 1.0
    ...     width: int = later(0)
    >>> to_dict(Circle()), to_dict(Circle(width=2))
    ({'radius': 1.0}, {'radius': 1.0, 'width': 2})
    """
    return dataclasses.field(default=default, metadata={_LATER: True})


def parsed(text: str) -> Any:
    """What `text` stands for, or itself, a word, if it is no number, tuple or the like.

    >>> parsed("(0.01, 0.05)"), parsed("validation")
    ((0.01, 0.05), 'validation')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as its documentation has it
        return text


def json_of(text: str | bytes, where: str) -> Any:
    """The JSON value that a file's text is. Raises ConfigError that names `where`, if it is none or is nested too deep.

    >>> json_of('{"a": 1}', "a.json")
    {'a': 1}
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON ({error})") from error


def path_of(text: str | Path, where: str) -> Path:
    """The user's path, a `~` expanded. Raises ConfigError that names `where`, if nothing can be called so.

    >>> path_of("a/b.txt", "data.path").name
    'b.txt'
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error  # a name too long; nobody's home
        raise ConfigError(f"{where}: {str(text)[:80]} is no path ({reason})") from error
    return path


def build(cls: type[T], section: Mapping[str, Any], where: str = "config") -> T:
    """Builds the frozen dataclass `cls` from a mapping (a ConfigDict or a dict).

    Args:
      cls: the dataclass; its annotations are the schema.
      section: values by field name; nested mappings become nested dataclasses.
      where: dotted path of this section, for messages.

    Raises:
      ConfigError: an unknown or missing key, a wrong type, an impossible value.
    """
    if not isinstance(section, Mapping):
        section = dict(section.items()) if hasattr(section, "items") else section
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: expected a section, got {_quoted(section)}")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in section:
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown key{nearest(key, fields)}")
    values = {}
    for name, field in fields.items():
        path = f"{where}.{name}"
        if name in section:
            values[name] = _value(hints[name], section[name], path, field.metadata.get(_TABLE))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}: required, not given")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error


def _value(hint: Any, value: Any, path: str, table: Mapping[str, type] | None) -> Any:
    """One field's value, checked against its annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [a for a in args if a is not type(None)]
        return _value(hint, value, path, table)
    if table is not None:
        return _tagged(table, value, path)
    if origin is typing.Literal:
        if not any(type(value) is type(a) and value == a for a in args):
            raise ConfigError(f'{path}: unknown choice "{_shown(value)}"{nearest(value, args)}')
        return value
    if origin is tuple:
        return _tuple(args, value, path)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    return _scalar(hint, value, path)


def _tagged(table: Mapping[str, type], value: Any, path: str) -> Any:
    if not hasattr(value, "items") or "name" not in value:
        raise ConfigError(f"{path}: expected a section with a name{nearest('', table)}")
    section = dict(value.items())
    name = section.pop("name")
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name: expected str, got {_quoted(name)}")
    try:
        cls = lookup(table, name, "name")
    except ConfigError as error:
        raise ConfigError(f"{path}.name: {error}") from error
    return build(cls, section, path)


def _tuple(args: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{path}: expected a tuple, got {_quoted(value)}")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise ConfigError(f"{path}: expected {len(hints)} values, got {len(value)}")
    return tuple(_value(h, v, f"{path}[{i}]", None) for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _scalar(hint: type, value: Any, path: str) -> Any:
    if isinstance(value, int) and not -_INTEGERS <= value < _INTEGERS:
        raise ConfigError(f"{path}: expected an integer of 64 bits, got one of {value.bit_length()}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {type(value).__name__} {_quoted(value)}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{path}: expected a finite number, got {value}")
    return value


def without_stale(cls: type, section: Mapping[str, Any], chosen: frozenset[str], where: str = "") -> dict[str, Any]:
    """`section` of `cls` without settings that belong to a union's former choice.

    Where the dotted path of a union's `name` is among `chosen` (set by the user, over a config
    that had another name), keys that the new choice lacks are dropped, unless chosen themselves.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Dot:
    ...     pass
    >>> @dataclasses.dataclass(frozen=True)
    ... class Page:
    ...     shape: object = one_of({"dot": Dot})
    >>> without_stale(Page, {"shape": {"name": "dot", "radius": 2.0}}, frozenset({"shape.name"}))
    {'shape': {'name': 'dot'}}
    """
    out, hints = dict(section.items()), _hints(cls)
    for field in dataclasses.fields(cls):
        value, path = out.get(field.name), f"{where}{field.name}"
        table = field.metadata.get(_TABLE)
        inner = hints[field.name]
        if not hasattr(value, "items"):
            continue
        value = dict(value.items())
        if table is not None:
            name = value.get("name")
            inner = table.get(name) if isinstance(name, str) else None  # what else it may be, `build` refuses
            if inner is not None and f"{path}.name" in chosen:
                known = {"name", *(f.name for f in dataclasses.fields(inner))}
                value = {k: v for k, v in value.items() if k in known or f"{path}.{k}" in chosen}
        out[field.name] = without_stale(inner, value, chosen, f"{path}.") if dataclasses.is_dataclass(inner) else value
    return out


def to_dict(config: Any) -> Any:
    """The inverse of `build`: plain JSON values, tagged unions with their `name`, no `later` field at its default."""
    if isinstance(config, (tuple, list)):
        return [to_dict(v) for v in config]
    if not dataclasses.is_dataclass(config):
        return config
    out = {}
    for field in dataclasses.fields(config):
        if not field.init:
            continue
        value = getattr(config, field.name)
        table = field.metadata.get(_TABLE)
        if _LATER in field.metadata and value == field.default:
            continue
        out[field.name] = to_dict(value)
        if table is not None and value is not None:
            (name,) = [n for n, cls in table.items() if cls is type(value)]
            out[field.name] = {"name": name} | out[field.name]
    return out


def config_hash(config: Any) -> str:
    """Ten hex digits of the sha256 of the canonical JSON of a config dataclass."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key to (old, new) wherever two nested configs differ; absent reads as None.

    Raises:
      ConfigError: one is nested without end, or nearly.
    """
    try:
        a, b = flatten(json.loads(json.dumps(old))), flatten(json.loads(json.dumps(new)))
    except RecursionError as error:
        raise ConfigError("config: its sections are nested too deep") from error
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}
