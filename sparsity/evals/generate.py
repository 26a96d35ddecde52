"""What a model of text says: the continuation of prompts, or what belongs in the place of their sentinels (T5)."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sparsity import spmd
from sparsity.config import ConfigError, path_of
from sparsity.data.vocabularies import EOS, Vocabulary
from sparsity.decode.generate import make_generate, make_sample
from sparsity.decode.sampling import Sampling
from sparsity.decode.weights import prepared, unstacked
from sparsity.evals.inference import mode_of
from sparsity.evals.result import Measure, Result, Subject, mean_and_se

_SENTINEL = re.compile(r"<extra_id_([0-9]+)>")  # as T5's vocabulary writes the spans that were taken out


@dataclasses.dataclass(frozen=True)
class Generated:
    """What was said after one prompt.

    Attributes:
      prompt: a line of the file.
      tokens: that were said, up to the end, which is the last of them if it came.
      text: they as text, sentinels as `<extra_id_0>`.
    """

    prompt: str
    tokens: tuple[int, ...]
    text: str


def generate(subject: Subject) -> Result:
    """What `say` says after each line of the file `config.prompts`.

    Raises:
      ConfigError: no such file, or a line that is empty, or what `say` raises.
    """
    found = say(subject, read_prompts(subject.config.prompts))
    return Result(_measures(found, subject), {"generated": [dataclasses.asdict(one) for one in found]})


def say(subject: Subject, prompts: Sequence[str]) -> list[Generated]:
    """Says up to `config.length` tokens after each prompt, `config.batch` prompts at a time.

    At temperature 0 they are the most likely ones, else drawn (`decode.sampling`) as a function of (seed, line, place)
    alone. T5 reads a line and an end, and says what is to follow; where the line has sentinels, `<extra_id_0>` and so
    on, that is each of them and what belongs in its place. GPT-2 and Llama continue the line, with nothing before it.

    In a mode of inference (`config.mode`) one device reads weights that are laid out for it.

    Raises:
      ConfigError: a model that cannot do it, a mode that its sparsifier does not permit, data without a vocabulary, a
        prompt (a "line") without tokens, with too many for the model's positions, with a sentinel that does not exist
        or a token that the model does not have.
    """
    cfg, source = subject.config, subject.source
    if not hasattr(subject.model.build(source.classes), "step"):
        kind = type(subject.model).__name__
        raise ConfigError(f"evals.names: generate needs a gpt2, llama or t5; {kind} says no tokens")
    model, params = _as_read(subject)
    mesh = spmd.make_mesh(spmd.MeshConfig(1), jax.devices()[:1]) if cfg.mode else subject.mesh
    if not hasattr(source, "vocabulary"):
        raise ConfigError(
            f"evals.names: generate needs text; {type(source).__name__} has no vocabulary to read it with"
        )
    spans, end = _spans(model), _end(subject)
    rows = [_tokens(line, i, source, spans) for i, line in enumerate(prompts, 1)]
    if not rows:
        return []
    if not spans:
        _check_positions(model, rows, cfg.length)
    sampling = Sampling(cfg.temperature, cfg.top_p) if cfg.temperature else None
    compiled, step = _compiled(model, source.classes, cfg.length, sampling, end), np.int32(subject.step)
    seed = np.uint32((subject.seed if cfg.seed is None else cfg.seed) % 2**32)  # a run's may be larger
    drawn = lambda batch: () if sampling is None else (seed, batch["line"])
    said: list[np.ndarray] = []
    with jax.set_mesh(mesh):
        for batch in _batches(rows, cfg.batch, spmd.batch_devices(mesh)):
            batch = spmd.place_whole(mesh, batch)
            said += list(spmd.fetch(compiled(params, batch["inputs"], batch["segments"], *drawn(batch), step)))
    said = [_up_to(end, row) for row, _ in zip(said, rows, strict=False)]  # rows that filled the batch are left out
    return [
        Generated(line, tuple(row.tolist()), text_of(row, source.vocabulary, spans))
        for line, row in zip(prompts, said, strict=True)
    ]


def _spans(model: Any) -> bool:
    """It was trained to say what was taken out of its inputs."""
    return "inputs" in model.inputs


def _end(subject: Subject) -> int | None:
    """The token that ends what is said; None: nothing does."""
    return EOS if _spans(subject.model) else subject.source.vocabulary.end


def _as_read(subject: Subject) -> tuple[Any, Any]:
    """The model, and its parameters as it reads them. Raises ConfigError."""
    cfg, model = subject.config, subject.model
    if not cfg.mode:
        return unstacked(model, subject.params)
    try:
        mode = mode_of(cfg.mode, model.mlp, model.d_model, cfg)
        return prepared(model, spmd.fetch(subject.params), mode)
    except ValueError as error:
        raise ConfigError(f"evals.mode: {error}") from error


@functools.lru_cache(maxsize=4)  # what is evaluated again and again while training is compiled once
def _compiled(model: Any, classes: int, length: int, sampling: Sampling | None, end: int | None) -> Callable[..., Any]:
    """What says the most likely tokens, or draws them by `sampling`."""
    module = model.build(classes)
    if sampling is None:
        return make_generate(module, length, end)
    return make_sample(module, length, sampling, end)


def read_prompts(path: str | None) -> list[str]:
    """The lines of a file. Raises ConfigError if there is none, none in it, or an empty one."""
    if path is None:
        raise ConfigError("evals.prompts: generate needs a file with a prompt a line (--set=prompts=FILE)")
    file = path_of(path, "evals.prompts")
    if not file.is_file():
        raise ConfigError(f"evals.prompts: there is no file {path}")
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise ConfigError(f"evals.prompts: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"evals.prompts: {path} is no UTF-8 ({error.reason} at byte {error.start})") from error
    for i, line in enumerate(lines, 1):
        if not line.strip():
            raise ConfigError(f"evals.prompts: line {i} of {path} is empty")
    return lines


def text_of(tokens: np.ndarray, vocabulary: Vocabulary, spans: bool) -> str:
    """`tokens` [n] as text; if they may be `spans`, sentinels are written as `<extra_id_0>`.

    Where a sentinel is a byte too (ByT5), only the one that is due is taken for one.
    """
    out, due, start = [], 0, 0
    for i, token in enumerate(map(int, tokens)):
        number = vocabulary.sentinel - token if spans else -1
        if 0 <= number < vocabulary.sentinels and (number == due or not vocabulary.decode(tokens[i : i + 1])):
            out += [vocabulary.decode(tokens[start:i]), f"<extra_id_{number}>"]
            due, start = number + 1, i + 1
    return "".join([*out, vocabulary.decode(tokens[start:])])


def _tokens(line: str, i: int, source: Any, spans: bool) -> np.ndarray:
    """The tokens [n] of line i."""
    tokens = _with_sentinels(line, i, source.vocabulary) if spans else source.vocabulary.encode(line)
    if not len(tokens):
        raise ConfigError(f"evals.prompts: line {i} has no tokens")
    if tokens.max() >= source.classes:  # a file whose numbers have gaps may have such
        raise ConfigError(
            f"evals.prompts: line {i} has token {tokens.max()}, and the model's are 0..{source.classes - 1}"
        )
    return tokens


def _with_sentinels(line: str, i: int, vocabulary: Vocabulary) -> np.ndarray:
    """The tokens of line i, its sentinels those of T5, and an end."""
    parts = []
    for j, part in enumerate(_SENTINEL.split(line)):  # text, number, text, ...
        if j % 2 and (len(part) > 9 or int(part) >= vocabulary.sentinels):
            last = f"the last of the vocabulary is <extra_id_{vocabulary.sentinels - 1}>"
            raise ConfigError(f"evals.prompts: line {i} has <extra_id_{part[:9]}>, and {last}")
        parts.append([vocabulary.sentinel - int(part)] if j % 2 else vocabulary.encode(part))
    return np.concatenate([*parts, [EOS]]).astype(np.int32)


def _check_positions(model, rows: Sequence[np.ndarray], length: int) -> None:
    for i, row in enumerate(rows, 1):
        try:
            model.check_input((len(row) + length - 1,))  # the last token is not read
        except ValueError as error:
            text = f"line {i} has {len(row)} tokens, and {length} may follow (evals.length)"
            raise ConfigError(f"evals.prompts: {text}: {error}") from error


def _batches(rows: Sequence[np.ndarray], batch: int, parts: int) -> Iterator[dict[str, np.ndarray]]:
    """All of one shape; rows without tokens fill the last one, and the only one up to a multiple of `parts`."""
    length = max(map(len, rows))
    batch = min(batch, -(-len(rows) // parts) * parts)
    for start in range(0, len(rows), batch):
        arrays = {name: np.zeros((batch, length), np.int32) for name in ("inputs", "segments")}
        for i, row in enumerate(rows[start : start + batch]):
            arrays["inputs"][i, : len(row)], arrays["segments"][i, : len(row)] = row, 1
        yield {**arrays, "line": np.arange(start, start + batch, dtype=np.int32)}


def _up_to(end: int | None, row: np.ndarray) -> np.ndarray:
    """`row` [n] up to its first `end`."""
    found = np.flatnonzero(row == end) if end is not None else ()
    return row[: found[0] + 1] if len(found) else row


def _measures(found: Sequence[Generated], subject: Subject) -> tuple[Measure, ...]:
    cfg, end, said = subject.config, _end(subject), [one.tokens for one in found]
    how = f"drawn at temperature {cfg.temperature:g} with top_p {cfg.top_p:g}" if cfg.temperature else "greedy"
    how += f", mode {cfg.mode}" if cfg.mode else ""
    of = f"{how}, at most {cfg.length}; mean over n prompts"
    tokens = mean_and_se([len(row) for row in said])
    measures = [Measure("generate.tokens", *tokens, len(said), f"tokens said after a prompt, {of}", "tokens")]
    if end is not None:
        ended = mean_and_se([row[-1] == end for row in said])
        measures.append(
            Measure("generate.ended", *ended, len(said), f"share of prompts after which the end came, {of}")
        )
    return tuple(measures)
