"""The deep networks of Price et al. 2024, and what their studies change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

# The rows of Table 2 of Price et al. 2024: the activation, its sparsity and, if it is clipped, V'(q*).
PRICE_ROWS = (
    "relu",
    *(f"relu_tau_{s}" for s in (0.6, 0.7)),
    *(f"st_{s}" for s in (0.5, 0.6, 0.7)),
    *(f"crelu_{s}_{slope}" for s in (0.6, 0.7, 0.8, 0.85) for slope in (0.5, 0.7, 0.9)),
    *(f"cst_{s}_{slope}" for s in (0.5, 0.6, 0.7, 0.8, 0.85) for slope in (0.5, 0.7, 0.9)),
)
_ACTIVATIONS = {
    "relu": "relu",
    "relu_tau": "shifted_relu",
    "st": "soft_threshold",
    "crelu": "clipped_relu",
    "cst": "clipped_soft_threshold",
}


def deep_mlp_digits(depth: int = 30, steps: int = 2500) -> ConfigDict:
    """The deep MLP of Price et al. 2024 (ReLU), on handwritten digits: a minute at depth 30 on two CPU cores."""
    return _deep(
        f"dnn{depth}_digits",
        {"name": "deep_mlp", "width": 300, "depth": depth, "sparsifier": {"name": "relu"}, "input_gain": 1.0},
        {"name": "digits", "shift": 0},
        {"steps": steps, "batch": 64, "learning_rate": 1e-2},
    )


def deep_mlp_mnist() -> ConfigDict:
    """The deep MLP of Price et al. 2024, Sec. 4 (ReLU): width 300, depth 100, 200 epochs of MNIST."""
    return _deep(
        "dnn100_mnist",
        {"name": "deep_mlp", "width": 300, "depth": 100, "sparsifier": {"name": "relu"}, "input_gain": 1.0},
        {"name": "mnist", "held_out": 0.1},
        {"steps": 200 * 450, "batch": 120, "learning_rate": 1e-4},
    )


def deep_cnn_digits() -> ConfigDict:
    """The deep CNN of Price et al. 2024 (ReLU), narrower and shallower, on handwritten digits."""
    model = {"channels": 24, "depth": 8, "kernel": 3, "dims": 2, "sparsifier": {"name": "relu"}, "input_gain": 1.0}
    return _deep(
        "cnn8_digits",
        {"name": "deep_cnn"} | model,
        {"name": "digits", "shift": 0},
        {"steps": 4000, "batch": 32, "learning_rate": 1e-2},
    )


def deep_cnn_cifar10() -> ConfigDict:
    """The deep CNN of Price et al. 2024, Sec. 4 (ReLU): 300 channels, depth 50, 200 epochs of CIFAR10."""
    model = {"channels": 300, "depth": 50, "kernel": 3, "dims": 2, "sparsifier": {"name": "relu"}, "input_gain": 1.0}
    return _deep(
        "cnn50_cifar10",
        {"name": "deep_cnn"} | model,
        {"name": "cifar10", "held_out": 0.1},
        {"steps": 200 * 375, "batch": 120, "learning_rate": 1e-3},
    )


def with_price_row(config: ConfigDict, row: str, seed: int = 0) -> ConfigDict:
    """`config`, a deep network, with the activation of a row of `PRICE_ROWS` ("crelu_0.85_0.7") and a seed.

    Unclipped rows with tau > 0 read inputs of variance 0.8, the paper's guard for their fixed point,
    which is stable from below only (App. C).

    Raises:
      ValueError: a row that is not written as those of `PRICE_ROWS` are.
    """
    config = config.copy_and_resolve_references()
    config.model.sparsifier = _price_sparsifier(row)
    if row.startswith(("relu_tau", "st")):
        config.model.input_gain = 0.8
    config.name, config.seed = f"{config.name}_{row}_seed{seed}", seed
    return config


def _price_sparsifier(row: str) -> ConfigDict:
    kind, *numbers = re.split(r"_(?=\d)", row)
    keys = {"relu": (), "relu_tau": ("sparsity",), "st": ("sparsity",)}.get(kind, ("sparsity", "slope"))
    if kind not in _ACTIVATIONS or len(numbers) != len(keys):
        raise ValueError(f'unknown run "{row}" of Table 2; valid: {", ".join(PRICE_ROWS)}')
    return ConfigDict({"name": _ACTIVATIONS[kind], **dict(zip(keys, map(float, numbers), strict=True))})


def with_price_mlp(config: ConfigDict, row: str, init: str, seed: int = 0) -> ConfigDict:
    """`config`, a ViT, whose MLPs have the activation of a row of `PRICE_ROWS` and the initialisation `init`."""
    config = config.copy_and_resolve_references()
    config.model.mlp.sparsifier, config.model.mlp.init = _price_sparsifier(row), init
    config.name, config.seed = f"{config.name}_{row}_seed{seed}_{init}", seed
    return config


def with_smooth_kinks(config: ConfigDict, width: float) -> ConfigDict:
    """`config`, a deep network with a clipped activation, every kink rounded over `width` to either side."""
    config = config.copy_and_resolve_references()
    config.model.sparsifier.name, config.model.sparsifier.width = f"smooth_{config.model.sparsifier.name}", width
    config.name = f"{config.name}_smooth_{width}"
    return config


def with_large_q(config: ConfigDict, q: float, arm: str) -> ConfigDict:
    """`config`, a deep network with a clipped activation, on the edge of chaos at `q` instead of 1.

    Threshold, clip, biases and input scale with sqrt(q). The arms: "q" no more than that; "q_logits" divides the
    logits by sqrt(q); "q_input" leaves the input at variance 1.

    Raises:
      ValueError: an unknown arm.
    """
    if arm not in ("q", "q_logits", "q_input"):
        raise ValueError(f'unknown arm "{arm}"; valid: q, q_logits, q_input')
    config = config.copy_and_resolve_references()
    model = config.model
    model.q = model.sparsifier.q = q
    model.input_gain = 1.0 if arm == "q_input" else q
    model.logit_scale = q**-0.5 if arm == "q_logits" else 1.0
    config.name = f"{config.name}_{arm}{q:g}"
    return config


def price_run(bases: Mapping[str, Callable[[], ConfigDict]], arg: str) -> ConfigDict:
    """The run of seed 0 of the row `arg`, "[SCALE/]ROW", over the base config of its scale ("embedded" unless given).

    Raises:
      ValueError: an unknown scale or row.
    """
    scale, _, row = arg.rpartition("/")
    scale = scale or "embedded"
    if scale not in bases:
        raise ValueError(f'unknown scale "{scale}" of "{arg}"; valid: {", ".join(bases)}')
    return with_price_row(bases[scale](), row)


def price_sweep(base: ConfigDict, rows: Sequence[str], seeds: int) -> list[ConfigDict]:
    """Every row with every seed, seed by seed, so that a study that is stopped has whole tables."""
    return [with_price_row(base, row, seed) for seed in range(seeds) for row in rows]


def first_steps(config: ConfigDict, steps: int) -> ConfigDict:
    """`config` for its first `steps` steps alone, all of them recorded."""
    config = config.copy_and_resolve_references()
    config.name, config.steps = f"{config.name}_first{steps}", steps
    config.every = ConfigDict({"record": 1, "eval": steps, "checkpoint": steps, "speed": steps})
    return config


def _deep(name: str, model: dict, data: dict, training: dict) -> ConfigDict:
    """Plain SGD at a constant rate, as Price et al. train; the rest of a run."""
    steps, embedded = training["steps"], data["name"] == "digits"
    saved = steps if embedded else 1000  # what a kill may cost: an embedded run takes a minute
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "steps": steps,
            "batch": training["batch"],
            "accumulate": 1,
            "keep": 1,
            "model": model,
            "data": data,
            "optimizer": {
                "learning_rate": training["learning_rate"],
                "rule": {"name": "sgd", "momentum": 0.0},
                "schedule": {"name": "constant", "warmup": 0},
                "grad_clip": None,
            },
            "mesh": {"data": 1 if embedded else -1, "model": 1},
            "every": {"record": max(steps // 8, 1), "eval": max(steps // 8, 1), "checkpoint": saved, "speed": 100},
            "evals": {"names": ("accuracy", "sparsity"), "split": "test", "batch": 128},
        }
    )
