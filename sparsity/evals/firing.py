"""What fires a unit: the tokens of a text, or the patches of images, on which it is active."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from sparsity import spmd
from sparsity.config import ConfigError
from sparsity.data.pipeline import Batch, eval_batches
from sparsity.evals.result import Measure, Result, Subject, mean_and_se
from sparsity.evals.sparsity import layer_name, numbered
from sparsity.layers.scan import LAYERS
from sparsity.layers.sparsify import ACTIVATIONS, Activated, Context
from sparsity.models.t5 import DECODER

EXAMPLES = 256  # of the split that are read, the first ones
KINDS = 512  # of tokens that are counted, the most frequent ones
LEAST = 20  # firings of a unit, below which nothing is said of what fires it
OF_KIND = 5  # of these, on the kind that it is said to prefer
UNITS, STRONGEST = 4, 4  # of a layer, and of a unit's tokens, that are shown
_BEFORE, _AFTER = 12, 4  # tokens of a text that are shown around one


@dataclasses.dataclass(frozen=True)
class Fires:
    """A unit and what fires it.

    Attributes:
      layer, unit: where it is.
      rate: share of tokens on which it is nonzero.
      kind: of token, which it prefers.
      share: of its firings, those on that kind.
      lift: `share` over the share of that kind among all tokens; 1 is no preference.
      strongest: the tokens on which |h| is largest, the largest first, in brackets, with what stands around them.
    """

    layer: str
    unit: int
    rate: float
    kind: str
    share: float
    lift: float
    strongest: tuple[str, ...]


@flax.struct.dataclass
class Counts:
    """Of the units of a layer, over the tokens that have been read.

    Attributes:
      fired_KxF: nonzero activations by kind of token; the last kind is all others.
      tokens_K: tokens by kind.
      size_FxS: the largest |h| of each unit, -1 where there are no more tokens.
      place_FxS: where they are: the example's number times `length`, and the token's place in it.
      length: tokens of an example.
    """

    fired_KxF: Any
    tokens_K: Any
    size_FxS: Any
    place_FxS: Any
    length: int = flax.struct.field(pytree_node=False)


def firing(subject: Subject) -> Result:
    """How far the units of each layer prefer one kind of token, and the units that do so most, with examples.

    A text's tokens are of the kind that the vocabulary has them; a patch of an image is of its image's class. A unit's
    kind is the one whose share among its firings is the largest multiple (lift) of its share among all tokens, of kinds
    with at least `OF_KIND` of its firings; units with fewer than `LEAST` firings are left out. The largest of many
    multiples is above 1 by chance: the yardstick is a unit that fires as often, on tokens drawn without looking.

    Raises:
      ConfigError: data with neither tokens nor labels, or a network that keeps running statistics, such as a ResNet.
    """
    arrays = {name: x[:EXAMPLES] for name, x in subject.source.model_input(subject.split.arrays()).items()}
    named = _named(subject, arrays)
    kinds = {name: _frequent(tokens) for name, tokens in named.items()}
    counted = _counted(subject, arrays, named, kinds)
    measures, shown, rng = [], [], np.random.default_rng(subject.seed)
    for layer in sorted(counted, key=numbered):
        counts, stream = counted[layer], _stream(layer, named)
        found = preferences(counts.fired_KxF, counts.tokens_K)
        null = preferences(_at_random(counts, rng), counts.tokens_K)
        measures += _measures(layer, found, null, f"the first {len(named[stream])} {subject.config.split} examples")
        for unit in sorted(found, key=lambda unit, found=found: -found[unit][2])[:UNITS]:
            kind, share, lift = found[unit]
            rate = float(counts.fired_KxF[:, unit].sum() / counts.tokens_K.sum())
            strongest = [
                _said(subject, named[stream], divmod(int(place), counts.length), counts.length)
                for size, place in zip(counts.size_FxS[unit], counts.place_FxS[unit], strict=True)
                if size > 0
            ]
            word = _word(subject, int(kinds[stream][kind]))
            shown.append(Fires(layer, int(unit), rate, word, share, lift, tuple(strongest)))
    return Result(tuple(measures), {"firing": [dataclasses.asdict(one) for one in shown]})


def as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """What `firing` shows, the array of that name, two lines a unit."""
    lines = []
    for one in found:
        often = f"fires on {100 * one['rate']:.1f}% of tokens, {100 * one['share']:.0f}% of them {one['kind']}"
        lines += [f"{one['layer']}, unit {one['unit']}: {often} ({one['lift']:.1f} times their share)"]
        lines += ["    " + "   ".join(one["strongest"])]
    return "\n".join(lines)


def preferences(fired_KxF: np.ndarray, tokens_K: np.ndarray) -> dict[int, tuple[int, float, float]]:
    """(kind, share, lift) of each unit that has one, by unit; the last kind is none.

    >>> preferences(np.array([[20, 5], [0, 5], [10, 20]]), np.array([30, 30, 40]))
    {0: (0, 0.6666666666666666, 2.2222222222222223), 1: (0, 0.16666666666666666, 0.5555555555555556)}
    """
    total_F, base_K = fired_KxF.sum(0), tokens_K / tokens_K.sum()
    share_KxF = fired_KxF[:-1] / np.maximum(total_F, 1)
    lift_KxF = np.where(fired_KxF[:-1] >= OF_KIND, share_KxF / np.maximum(base_K[:-1, None], 1e-12), 0)
    best_F = lift_KxF.argmax(0)
    found = np.flatnonzero((total_F >= LEAST) & (lift_KxF.max(0) > 0))
    return {int(f): (int(best_F[f]), float(share_KxF[best_F[f], f]), float(lift_KxF[best_F[f], f])) for f in found}


def _named(subject: Subject, arrays: Batch) -> dict[str, np.ndarray]:
    """The numbers that say what a token is, by input: tokens [N, L] of texts, labels [N, 1] of images."""
    if "image" not in subject.model.inputs:
        return {name: arrays[name] for name in ("tokens", "inputs", "decoder_inputs") if name in subject.model.inputs}
    if "label" not in arrays:
        raise ConfigError("evals.names: firing calls patches by the class of their image, and these data have none")
    return {"image": np.asarray(arrays["label"])[:, None]}


def _stream(layer: str, named: Mapping[str, Any]) -> str:
    """Which input's tokens a layer's activations are of: a T5 has two, and the second is its decoder's."""
    first, *second = named
    return second[0] if second and layer.startswith(DECODER) else first


def _frequent(tokens: np.ndarray) -> np.ndarray:
    """The `KINDS` most frequent numbers, rising."""
    kinds, counts = np.unique(tokens, return_counts=True)
    return np.sort(kinds[np.argsort(-counts, kind="stable")[:KINDS]])


def _counted(subject: Subject, arrays: Batch, named: Batch, kinds: Mapping[str, np.ndarray]) -> dict[str, Counts]:
    """The counts of every layer."""
    module, inputs = subject.model.build(subject.source.classes), subject.model.inputs
    first = [arrays[name][:1] for name in inputs]
    state = set(jax.eval_shape(lambda: module.init(jax.random.key(0), *first, Context()))) - {"params"}
    if state:
        raise ConfigError(f"evals.names: firing: {type(subject.model).__name__} keeps {', '.join(sorted(state))}")

    @jax.jit
    def program(params, part):
        ctx = Context(weight_B=part["weight"], step=subject.step, hand_out=True)
        _, new = module.apply({"params": params}, *(part[name] for name in inputs), ctx, mutable=[ACTIVATIONS])
        out = {}
        for layer, one in _layers(new.get(ACTIVATIONS, {})).items():
            stream = _stream(layer, named)
            out[layer] = _counts(one, part[f"kind of {stream}"], part["weight"], len(kinds[stream]))
        return out

    parts = dict(arrays)
    for name, tokens in named.items():
        place = np.minimum(np.searchsorted(kinds[name], tokens), len(kinds[name]) - 1)
        known = kinds[name][place] == tokens
        parts[f"kind of {name}"] = np.where(known, place, len(kinds[name])).astype(np.int32)
    total: dict[str, Counts] = {}
    batch, params = subject.config.batch, spmd.fetch(subject.params)
    for i, part in enumerate(eval_batches(parts, batch)):
        for layer, one in jax.device_get(program(params, part)).items():
            one = one.replace(place_FxS=one.place_FxS + i * batch * one.length)
            total[layer] = _merged(total[layer], one) if layer in total else one
    return total


def _layers(tree: Any) -> dict[str, Activated]:
    """What was handed out, by layer; those of a scan's stack one by one."""
    out = {}
    for path, one in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Activated)):
        keys = [p.key for p in path]
        name = layer_name(keys)
        if LAYERS not in keys:
            out[name] = one
            continue
        for i in range(len(one.h)):
            out[f"{name}_{i}"] = jax.tree.map(lambda x, i=i: x[i], one)
    return out


def _counts(one: Activated, kind_BxL: jax.Array, weight_B: jax.Array, kinds: int) -> Counts:
    """The counts of one batch."""
    h_BxLxF = jnp.abs(one.h.reshape(len(one.h), -1, one.h.shape[-1]).astype(jnp.float32))
    length = h_BxLxF.shape[1]
    weight_BxL = jnp.broadcast_to(weight_B[:, None], h_BxLxF.shape[:2])
    if one.weight_BxL is not None:
        weight_BxL *= one.weight_BxL.reshape(weight_BxL.shape) > 0
    h_NxF, real_N = h_BxLxF.reshape(-1, h_BxLxF.shape[-1]), weight_BxL.reshape(-1) > 0
    kind_N = jnp.broadcast_to(kind_BxL, weight_BxL.shape).reshape(-1)
    of_kind_NxK = jax.nn.one_hot(kind_N, kinds + 1) * real_N[:, None]
    size_FxS, place_FxS = jax.lax.top_k(jnp.where(real_N[:, None], h_NxF, -1.0).T, min(STRONGEST, len(h_NxF)))
    return Counts(of_kind_NxK.T @ (h_NxF != 0), of_kind_NxK.sum(0), size_FxS, place_FxS, length)


def _merged(a: Counts, b: Counts) -> Counts:
    """The counts of both."""
    size, place = (np.concatenate(pair, 1) for pair in ((a.size_FxS, b.size_FxS), (a.place_FxS, b.place_FxS)))
    largest = np.argsort(-size, axis=1, kind="stable")[:, :STRONGEST]
    return Counts(
        a.fired_KxF + b.fired_KxF,
        a.tokens_K + b.tokens_K,
        np.take_along_axis(size, largest, 1),
        np.take_along_axis(place, largest, 1),
        a.length,
    )


def _at_random(counts: Counts, rng: np.random.Generator) -> np.ndarray:
    """`fired_KxF` of units that fire as often, on tokens drawn without looking at their kind."""
    tokens_K = counts.tokens_K.astype(np.int64)
    drawn = [rng.multivariate_hypergeometric(tokens_K, int(n), method="marginals") for n in counts.fired_KxF.sum(0)]
    return np.stack(drawn, 1)


def _measures(layer: str, found: Mapping[int, Any], null: Mapping[int, Any], where: str) -> list[Measure]:
    of = f"of n units with at least {LEAST} firings on {where}"
    kind = f"the kind of token they prefer (text: a token of the vocabulary; images: the class), {of}"

    def measure(name: str, values: Sequence[float], text: str, unit: str = "share") -> Measure:
        mean, error = mean_and_se(values) if values else (float("nan"), None)
        return Measure(f"firing.{name}.{layer}", mean, error, len(values), f"{text}; mean over units", unit)

    shares, lifts = ([one[i] for one in found.values()] for i in (1, 2))
    text = f"share of firings on {kind}, over the share of all tokens that are of it"
    return [
        measure("share", shares, f"share of firings that are on {kind}"),
        measure("lift", lifts, text, ""),
        measure(
            "lift_by_chance", [one[2] for one in null.values()], f"{text}, if they fired as often without looking", ""
        ),
    ]


def _said(subject: Subject, named_NxL: np.ndarray, place: tuple[int, int], length: int) -> str:
    """The token at `place` (example, token), in brackets, with what stands around it."""
    example, i = place
    if "image" in subject.model.inputs:
        side = round(length**0.5)
        extra = length - side**2  # a class token stands first
        where = "" if length == 1 else ", class token" if i < extra else f", patch {divmod(i - extra, side)}"
        return f"[{_word(subject, int(named_NxL[example, 0]))}{where}]"
    tokens = named_NxL[example]
    words = lambda part: "".join(_word(subject, int(token)) for token in part)
    return (
        f"{words(tokens[max(i - _BEFORE, 0) : i])}[{_word(subject, int(tokens[i]))}]{words(tokens[i + 1 :][:_AFTER])}"
    )


def _word(subject: Subject, token: int) -> str:
    """What a token, or an image's class, is called."""
    if "image" in subject.model.inputs:
        return f"class {token}"
    vocabulary = getattr(subject.source, "vocabulary", None)
    text = "" if vocabulary is None else vocabulary.decode(np.array([token], np.int32))
    return text.replace("\n", "\\n") or f"<{token}>"
