"""A measurement of this machine as a run of a study: it has config, directory and outcome, and trains nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from sparsity import config as config_lib
from sparsity.bench import protocol
from sparsity.bench.latency import INPUTS, GreedySteps, Way, t5_of
from sparsity.bench.protocol import Bar, Case
from sparsity.evals.result import Measure
from sparsity.layers.inference import Dense, GatherOut
from sparsity.ops.sparsifiers import Relu, TopK
from sparsity.ops.top_k import predict_approx
from sparsity.run import Outcome, Workdir
from sparsity.writer import Progress, write_json

DENSE, EXACT = "dense", "exact"
LATENCY = "latency"  # the kind, and its record among the outcome's arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Times greedy tokens of a T5 with random weights: dense, and with Top-k, W_o's rows alone being read.

    Attributes:
      name: what the run is called.
      size: of T5, by name.
      ks: units kept.
      recalls: targets of `approx_max_k` that each k is searched with.
      exact_ks: those that are searched exactly too.
      inputs: tokens that are read.
      tokens: that are said by the shorter and by the longer of two arms; the slope between them is timed.
      rounds: in which every arm runs once.
      smoke: toy sizes, which measure nothing.
    """

    kind: Literal["latency"] = LATENCY
    name: str
    size: Literal["small", "base", "large", "3b", "11b"]
    ks: tuple[int, ...]
    recalls: tuple[float, ...] = (0.95,)
    exact_ks: tuple[int, ...] = ()
    inputs: int = INPUTS
    tokens: tuple[int, int] = (8, 40)
    rounds: int = 12
    smoke: bool = False

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f'name: letters, digits, "_", "-" and "." (it names a directory), got "{self.name}"')
        d_ff = t5_of(self.size, self.smoke)[0].mlp.d_ff
        if max((*self.ks, *self.exact_ks), default=0) > d_ff:
            raise ValueError(f"ks: T5 {self.size} has no more than {d_ff} units, got {self.ks} and {self.exact_ks}")
        if not 1 <= self.tokens[0] < self.tokens[1]:
            raise ValueError(f"tokens: the longer arm must say more than the shorter, got {self.tokens}")
        if not self.ks or min((*self.ks, *self.exact_ks)) < 1:
            raise ValueError(f"ks: numbers of units from 1 on are needed, got {self.ks} and {self.exact_ks}")
        if not all(0 < recall <= 1 for recall in self.recalls):
            raise ValueError(f"recalls: must be in (0, 1], got {self.recalls}")
        for field in ("inputs", "rounds"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")

    def resumable_changes(self) -> tuple[str, ...]:
        """Key prefixes that may differ when it is called again: none."""
        return ()

    def ways(self, d_ff: int) -> dict[str, Way]:
        """The arms: "dense", "k128, recall 0.95", "k128, exact"."""
        approx = {
            arm_name(k, recall): Way(TopK(k, method="approx", recall_target=recall), GatherOut())
            for recall in self.recalls
            for k in self.ks
        }
        exact = {arm_name(k, None): Way(TopK(k), GatherOut()) for k in self.exact_ks}
        return {DENSE: Way(Relu(), Dense())} | approx | exact


def arm_name(k: int, recall: float | None) -> str:
    """What an arm is called; a recall of None is the exact search."""
    return f"k{k}, {EXACT if recall is None else f'recall {recall:g}'}"


def latency_config(section: Mapping[str, Any]) -> LatencyConfig:
    """The typed config of a measurement. Raises ConfigError, in one line."""
    return config_lib.build(LatencyConfig, section)


def measure_latency(config: LatencyConfig, workdir: str | Path, progress: Progress | None = None) -> Outcome:
    """Measures `config`, once: what is there is returned. What is not sound is measured again, once.

    Measures are "ms.ARM", milliseconds a token, and "reduction.ARM", 1 - time(arm) / time(dense), medians over n
    rounds; the record of all rounds is the array "latency".

    Raises:
      WorkdirError: the workdir is unwritable, claimed, or belongs to another config.
    """
    files = Workdir(workdir)
    files.create()
    files.refuse_other(config)
    if (ended := files.read_outcome()) is not None:
        return ended
    with files.claim():
        # Again: another process may have held the claim until now, and ended the measurement.
        if (ended := files.read_outcome()) is not None:
            return ended
        write_json(files.config, config_lib.to_dict(config))
        case = latency_case(config)
        if progress is not None:
            progress.say(f"{config.name}: {case.name}, {config.rounds} rounds")
        stream, tries = (1 << 20, 1) if config.smoke else (protocol.STREAM_BYTES, protocol.TRIES)
        record = protocol.measure(case, config.rounds, stream, tries)
        found = record | {"machine": protocol.machine()}
        outcome = Outcome("finished", config.rounds, _measures(config, record), {LATENCY: found})
        files.write_outcome(outcome)
    return outcome


def latency_case(config: LatencyConfig) -> Case:
    """The arms, and what is known of them: whether the search is a PartialReduce, and the layers there are."""
    model, classes = t5_of(config.size, config.smoke)
    model = dataclasses.replace(model, layers=1)  # of the encoder, whose time is in no slope
    steps = GreedySteps(model, classes, config.inputs, config.tokens, config.ways(model.mlp.d_ff))
    backend = jax.default_backend()
    reduces = {
        arm_name(k, recall): predict_approx(model.mlp.d_ff, k, recall, backend) is not None
        for recall in config.recalls
        for k in config.ks
    }
    return Case(
        name=f"greedy tokens of T5 {config.size}, {steps.config.decoder_layers} decoder layers",
        rows="random weights",
        arms=steps.arms(),
        bars=tuple(Bar(arm, DENSE) for arm in steps.ways if arm != DENSE),
        facts={
            "backend": backend,
            "device": jax.devices()[0].device_kind,
            "dtype": model.dtype,
            "d_ff": model.mlp.d_ff,
            "layers": steps.config.decoder_layers,
            "more": config.tokens[1] - config.tokens[0],
            "of": model.decoder_layers,
            "partial_reduce": {arm: reduces.get(arm, False) for arm in steps.ways if arm != DENSE},
        },
        slopes=steps.slopes,
        moved=steps.moved(),
    )


def _measures(config: LatencyConfig, record: Mapping[str, Any]) -> tuple[Measure, ...]:
    n, more = config.rounds, config.tokens[1] - config.tokens[0]
    found = []
    for arm, rate in record["rates"].items():
        text = f"median over n rounds of a greedy token's time, the slope between {config.tokens} tokens"
        found.append(Measure(f"ms.{arm}", rate["ms"] / more, None, n, text, "ms"))
    for bar in record["bars"]:
        text = f"1 - a greedy token's time over the dense one's, of the same round, median over n, {record['name']}"
        found.append(Measure(f"reduction.{bar['arm']}", 1 - bar["median"], None, n, text))
    return tuple(found)
