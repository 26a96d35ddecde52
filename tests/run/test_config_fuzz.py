"""Anything in the place of any setting: a config is built, or refused in one line that names the setting.

Cases are of five kinds: another type, a number out of range, a key that is missing, one too many, one misspelt.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import json
import math
import re
import typing
from typing import Any, Literal

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from sparsity import recipes
from sparsity.config import ConfigError, config_hash, to_dict
from sparsity.run import Engine, run_config, smoke
from tests.run.runs import autoencoder

# Two rows of Price et al.'s Table 2 are above the bifurcation: they warn, and proceed.
pytestmark = pytest.mark.filterwarnings("ignore::sparsity.theory.edge_of_chaos.BifurcationWarning")

KINDS = ("type", "range", "missing", "extra", "misspelt")
HUGE = 10**5000  # Python does not even write it
VALUES = [
    *(None, True, False, 0, 3, -1, HUGE, 2.5, math.nan, 1 + 2j, object(), b"bytes", np.float32(1), np.zeros(3)),
    *("", "word", "two\nlines", "\x1b[31mred", "\ud800", "~nobody/x", "\0", "a" * 5000, "(", "true", "1"),
    *((), (1,), ("x", 1), (-1, 2), [[]], [None], ((1, 2), (3, 4)), (("(", 1.0),), [HUGE]),
    *({}, {"name": "relu"}, {"name": 3}, {"name": ["relu"]}, {"name": "two\nlines"}, {1: 2}, ConfigDict({"a": 1})),
]
NUMBERS = [
    *(0, 1, 2, -1, -(2**31), 2**31, 2**32, 2**62, 2**63, -(2**63) - 1, 10**30, HUGE, -HUGE),
    *(0.0, -0.0, 0.5, 1.0, -1.0, -1e-300, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf),
]
# Settings that may be negative: devices, biases and the ends of salt and pepper.
SIGNED = {"mesh.data", "head_bias", "low", "high"}


SPARSIFIED = [
    {"name": "shifted_relu", "sparsity": 0.7},
    {"name": "soft_threshold", "tau": 1.0},
    {"name": "clipped_relu", "sparsity": 0.85, "slope": 0.7},
    {"name": "smooth_clipped_relu", "width": 0.1, "tau": 1.0, "m": 1.0},
    {"name": "jump_relu", "theta": 1.0},
    {"name": "top_k", "k": 4, "method": "statistical"},
]


def _with(config: ConfigDict, **changes: Any) -> ConfigDict:
    config = config.copy_and_resolve_references()
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = functools.reduce(getattr, parents, config)
        node[last] = ConfigDict(value) if isinstance(value, dict) else value
    return config


@functools.cache
def _runs() -> dict[str, ConfigDict]:
    """Runs that have, between them, every model, and most of what is chosen by name."""
    noise = {"name": "gaussian", "sigma": 0.1, "schedule": {"name": "geometric", "start": 2, "length": 4, "end": 0.1}}
    tokens = {"name": "sentencepiece", "path": "none.model"}
    folder = {"name": "image_folder", "path": "none", "classes": 10, "size": 32}
    vit, t5, mlp = recipes.vit_digits(), recipes.t5_text(), recipes.mlp_digits()
    return {
        "vit": recipes.with_top_k(vit, 4),
        "vit, inception": _with(vit, data=folder, evals__names=("accuracy",), data__rand_augment={"layers": 2}),
        "vit, other optimizers": _with(vit, optimizer__rule={"name": "sgd"}, optimizer__multipliers=(("bias", 5.0),)),
        "vit, sparse Adam": _with(vit, optimizer__rule={"name": "sparse_adam"}, penalty={"name": "l2", "weight": 1.0}),
        "vit, started": _with(vit, start=recipes.vit_digits(), optimizer__schedule={"name": "linear", "warmup": 2}),
        "mixer": recipes.mixer_digits(),
        "resnet": recipes.resnet_digits(),
        "t5": t5,
        "t5, packed": _with(t5, data__vocabulary=tokens, data__corpus={"name": "json", "path": "none"}, z_loss=1e-4),
        "t5, prepared": _with(t5, data={"name": "prepared_text", "path": "none"}, evals__during=("language",)),
        "t5, mock": _with(t5, data={"name": "mock_spans", "length": 32, "classes": 384}),
        "bert": recipes.bert_text(),
        "gpt2": recipes.with_mlp_noise(recipes.gpt2_text(), 0.5, 100),
        "gpt2, WikiText": recipes.gpt2_wikitext(),
        "gpt2, windows": _with(recipes.gpt2_text(), data={"name": "next_tokens", "length": 64}),
        "llama": recipes.llama_text(),
        "deep MLP": recipes.deep_mlp_digits(),
        "deep CNN": recipes.deep_cnn_digits(),
        "autoencoder": autoencoder(),
        "autoencoder, Jacobian": recipes.with_jacobian_penalty(recipes.autoencoder_photos(), 0.1),
        "autoencoder, latents": recipes.autoencoder_latents(),
        "MLP": mlp,
        "MLP, salt and pepper": recipes.with_salt_and_pepper(mlp, 0.1),
        "MLP, its own noise": _with(mlp, model__noise=noise, model__noisy_layers=(0,)),
        "MLP, noisy labels": _with(mlp, data={"name": "noisy_labels", "share": 0.5, "of": {"name": "digits"}}),
        "MLP, a subset": _with(mlp, data={"name": "subset", "examples": 9, "of": {"name": "cifar10"}}),
        "MLP, random data": _with(mlp, data={"name": "random_data", "of": {"name": "mnist"}}),
        "MLP, mock": _with(mlp, data={"name": "mock", "image_shape": (8, 8, 1), "classes": 10}),
        "AlexNet": recipes.alexnet_digits(),
        **{f"MLP of {one['name']}": _with(mlp, model__sparsifier=one) for one in SPARSIFIED},
    }


RUNS = sorted(_runs())


@dataclasses.dataclass(frozen=True)
class Place:
    """A setting of a run: its keys, its annotation, and the fields that it stands among."""

    keys: tuple[str, ...]
    hint: Any
    beside: tuple[str, ...]

    @property
    def dotted(self) -> str:
        return ".".join(self.keys)


def settings_of(config: Any) -> tuple:
    return tuple(field for field in dataclasses.fields(config) if field.init)


def written(config: Any) -> Any:
    """All settings as plain values, those at their defaults too."""
    if isinstance(config, tuple):
        return [written(value) for value in config]
    if not dataclasses.is_dataclass(config):
        return config
    out = {}
    for field in settings_of(config):
        value, table = getattr(config, field.name), field.metadata.get("table")
        out[field.name] = written(value)
        if table is not None and value is not None:
            name = next(name for name, cls in table.items() if cls is type(value))
            out[field.name] = {"name": name} | out[field.name]
    return out


def places(config: Any, keys: tuple[str, ...] = ()) -> list[Place]:
    """Every setting of a config, sections and the names of what is chosen among them."""
    fields = settings_of(config)
    beside, hints, out = tuple(f.name for f in fields), typing.get_type_hints(type(config)), []
    for field in fields:
        path, value, table = (*keys, field.name), getattr(config, field.name), field.metadata.get("table")
        out.append(Place(path, dict if table is not None else hints[field.name], beside))
        if table is not None and value is not None:
            inside = ("name", *(f.name for f in settings_of(value)))
            out.append(Place((*path, "name"), Literal[tuple(table)], inside))
        if dataclasses.is_dataclass(value):
            out += places(value, path)
    return out


@functools.cache
def run_of(name: str) -> tuple[dict[str, Any], list[Place]]:
    typed = run_config(_runs()[name])
    return written(typed), places(typed)


def of_number(hint: Any) -> bool:
    return bool({int, float} & {hint, *typing.get_args(hint)})


def fits(value: Any, hint: Any) -> bool:
    """Whether a number, a word, a truth value or None is of an annotation's type."""
    if {hint, *typing.get_args(hint)} & {float} and type(value) in (int, float):
        return -(2**63) <= value < 2**63 if type(value) is int else math.isfinite(value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        return False
    return type(value) in {hint, *typing.get_args(hint)}


def of_words(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal and all(isinstance(word, str) for word in typing.get_args(hint))


@st.composite
def misspelt(draw, word: str) -> str:
    """`word` with a letter that is doubled, left out or another one."""
    at = draw(st.integers(0, len(word) - 1))
    changed = draw(st.sampled_from([2 * word[at], "", "q"]))
    return word[:at] + changed + word[at + 1 :]


@st.composite
def cases(draw, kind: str) -> tuple[dict[str, Any], Place, Any]:
    """(the run's settings with one that is wrong, its place, what stands there)."""
    section, there = run_of(draw(st.sampled_from(RUNS)))
    section = copy.deepcopy(section)
    place = draw(st.sampled_from([p for p in there if kind != "range" or of_number(p.hint)]))
    *parents, key = place.keys
    node = functools.reduce(lambda of, one: of[one], parents, section)
    if kind == "missing":
        return section, place, node.pop(key)
    if kind in ("type", "range"):
        numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
        node[key] = value = draw(numbers if kind == "range" else st.sampled_from(VALUES))
    elif kind == "extra":
        value = draw(st.text(max_size=8) | st.sampled_from(["__class__", "items", "two\nlines", 3, None]))
        assume(value not in (*place.beside, "name"))
        node[value] = draw(st.sampled_from([None, 1, {}]))
    elif of_words(place.hint):
        node[key] = value = draw(misspelt(node[key]))
        assume(value not in typing.get_args(place.hint))
    else:
        value = draw(misspelt(key))
        assume(value not in (*place.beside, "name"))
        node[value] = node.pop(key)
    return section, place, value


def outcome(kind: str, section: dict[str, Any], place: Place, value: Any) -> str:
    """Whether the case is built or refused, each as it should be."""
    scalar = {int, float, str, bool} & {place.hint, *typing.get_args(place.hint)} and typing.get_origin(
        place.hint
    ) not in (tuple, Literal)
    wrong = kind in ("type", "range") and scalar and not fits(value, place.hint)
    negative = kind == "range" and not wrong and value < 0 and not SIGNED & {place.dotted, place.keys[-1]}
    try:
        config = run_config(section)
    except ConfigError as error:
        text = str(error)
    else:
        assert kind not in ("extra", "misspelt"), f"{value!r} was taken at {place.dotted}"
        assert not wrong, f"{value!r:.80} was taken for {place.hint} at {place.dotted}"
        assert not negative, f"{value} was taken at {place.dotted}"
        assert run_config(json.loads(json.dumps(to_dict(config)))) == config
        assert len(config_hash(config)) == 10
        with contextlib.suppress(ConfigError):  # of the devices there are, which no config knows
            assert smoke(config).steps == 2
        return "built"
    assert text.isprintable()
    assert len(text) < 2500
    assert text.startswith(("config", "data."))
    around = ".".join(("config", *place.keys[:-1]))
    if wrong:
        assert text.startswith(f"config.{place.dotted}: expected"), text
    elif kind == "extra":
        assert text.startswith(f"{around}."), text
        assert ": unknown key; " in text
    elif kind == "misspelt":
        valid = typing.get_args(place.hint) if of_words(place.hint) else place.beside
        asked = place.dotted if of_words(place.hint) else ".".join((*place.keys[:-1], value))
        assert text.startswith(f"config.{asked}: unknown "), text
        suggested = re.search(r"; (?:did you mean \"(.*)\"\?|valid: (.*))$", text)
        assert suggested[1] in valid or place.keys[-1] in suggested[2].split(", "), text
    else:  # the setting, one beside it, or one elsewhere that it does not fit
        words, elsewhere = set(re.findall(r"\w+", text)), text.partition(":")[0].split(".")[1:]
        there = functools.reduce(lambda of, key: of.get(key, {}) if isinstance(of, dict) else {}, elsewhere, section)
        assert words & {*place.keys, *place.beside} - {"config"} or there != {}, text
    return "refused"


def outcomes(kind: str, number: int) -> collections.Counter:
    """How many of `number` cases are built and refused."""
    tried = collections.Counter()

    @settings(max_examples=number, database=None, suppress_health_check=list(HealthCheck))
    @given(cases(kind))
    def one(case):
        tried[outcome(kind, *case)] += 1

    one()
    return tried


@pytest.mark.parametrize("number", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_whatever_stands_in_a_config_it_is_built_or_refused_in_a_line_that_names_it(number):
    tried = collections.Counter()
    for kind in KINDS:
        tried.update({(kind, how): n for how, n in outcomes(kind, number // len(KINDS)).items()})
    assert {kind: sum(tried[kind, how] for how in ("built", "refused")) for kind in KINDS} == dict.fromkeys(
        KINDS, number // len(KINDS)
    )
    assert min(tried["type", "refused"], tried["range", "refused"], tried["missing", "refused"]) > number / 50
    assert min(tried["type", "built"], tried["range", "built"], tried["missing", "built"]) > 0


SMALL = ("MLP", "autoencoder", "deep MLP", "vit")


@pytest.mark.parametrize("number", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_of_small_numbers_in_a_model_there_is_a_network_or_a_line(number):
    """Without compiling: shapes alone."""
    tried = collections.Counter()

    @settings(max_examples=number, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def one(data):
        section, there = run_of(data.draw(st.sampled_from(SMALL)))
        section = copy.deepcopy(section)
        numbers = [p for p in there if p.hint is int and p.keys[0] in ("model", "mesh", "batch", "accumulate")]
        place = data.draw(st.sampled_from(numbers))
        functools.reduce(lambda of, one: of[one], place.keys[:-1], section)[place.keys[-1]] = data.draw(
            st.integers(1, 9)
        )
        try:
            engine = Engine(smoke(run_config(section)))
        except ConfigError as refused:
            text = str(refused)
            tried["refused"] += 1
        else:
            text = f"config.{len(jax.tree.leaves(engine.abstract.params))}"
            tried["built"] += 1
        assert text.startswith("config.")

    one()
    assert sum(tried.values()) == number
