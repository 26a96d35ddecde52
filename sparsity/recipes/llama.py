"""Llama-style decoders by name: today's dense language models, to measure and to make sparse."""

from __future__ import annotations

from ml_collections import ConfigDict

# d_model, d_ff, layers, heads, heads of keys and values, base of the rotations, epsilon and whether the embedding makes
# the logits, by name: TinyLlama (Zhang et al. 2024), Llama 2 (Touvron et al. 2023) and Llama 3 (Dubey et al. 2024).
LLAMA_SIZES = {
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 1e4, 1e-5, False),
    "2-7b": (4096, 11_008, 32, 32, 32, 1e4, 1e-5, False),
    "2-13b": (5120, 13_824, 40, 40, 40, 1e4, 1e-5, False),
    "3-8b": (4096, 14_336, 32, 32, 8, 5e5, 1e-5, False),
}


def llama_model(size: str, sparsifier: str = "silu", gate: str | None = None) -> ConfigDict:
    """The model of a Llama of `LLAMA_SIZES`.

    Args:
      size: its name.
      sparsifier: of the branch that SiLU is on; "relu" is Mirzadeh et al. 2023's ReLUfied MLP.
      gate: of the other branch; "relu" beside a sparsifier "relu" is Song et al. 2024's dReLU.

    Raises:
      ValueError: there is no such size.
    """
    if size not in LLAMA_SIZES:
        raise ValueError(f'unknown size of Llama "{size}"; valid: {", ".join(LLAMA_SIZES)}')
    d_model, d_ff, layers, heads, kv_heads, theta, epsilon, tied = LLAMA_SIZES[size]
    mlp = {"d_ff": d_ff, "sparsifier": {"name": sparsifier}, "gated": True, "use_bias": False, "init": "gpt2"}
    if gate is not None:
        mlp["gate"] = {"name": gate}
    sizes = {"d_model": d_model, "layers": layers, "heads": heads, "kv_heads": kv_heads}
    return ConfigDict({"name": "llama", **sizes, "theta": theta, "epsilon": epsilon, "tied": tied, "mlp": mlp})


# What stands in the place of SiLU, and on the other branch, of a Llama's MLPs, by name. "relu" and "shifted_relu" are
# those of Mirzadeh et al. 2023, "drelu" is that of Song et al. 2024.
RELUFIED = {
    "silu": ({"name": "silu"}, None),
    "relu": ({"name": "relu"}, None),
    "shifted_relu": ({"name": "shifted_relu", "tau": 0.5}, None),
    "drelu": ({"name": "relu"}, {"name": "relu"}),
}


def llama_text(steps: int = 1000) -> ConfigDict:
    """A tiny Llama that predicts the next byte of Python's documentation; a minute or two on a CPU core."""
    model = llama_model("tinyllama-1.1b")
    model.update({"d_model": 64, "layers": 3, "heads": 4, "kv_heads": 2})
    model.mlp.d_ff = 192
    return ConfigDict(
        {
            "name": "llama_text",
            "seed": 0,
            "steps": steps,
            "batch": 16,
            "keep": 1,
            "model": model,
            "data": {"name": "text", "length": 64},
            "optimizer": {
                "learning_rate": 2e-3,
                "rule": {"name": "adamw", "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
                "schedule": {"name": "cosine", "warmup": 50},
                "grad_clip": 1.0,
            },
            "mesh": {"data": 1, "model": 1},
            "every": {"record": 50, "eval": 100, "checkpoint": steps, "speed": 50},
            "evals": {"names": ("language", "sparsity", "neurons", "cost"), "split": "test", "batch": 128},
        }
    )


def with_mlps(config: ConfigDict, activation: str) -> ConfigDict:
    """`config`, a Llama's run, with the MLPs of `RELUFIED` that `activation` names; the run is named by it too.

    Raises:
      ValueError: there are none of that name.
    """
    if activation not in RELUFIED:
        raise ValueError(f'unknown activation "{activation}" of a Llama\'s MLPs; valid: {", ".join(RELUFIED)}')
    config = config.copy_and_resolve_references()
    sparsifier, gate = RELUFIED[activation]
    config.model.mlp.sparsifier = ConfigDict(sparsifier)
    if gate is not None:
        config.model.mlp.gate = ConfigDict(gate)
    config.name = f"{config.name}_{activation}"
    return config


def fine_tuned(config: ConfigDict, activation: str, steps: int, learning_rate: float) -> ConfigDict:
    """A run that starts from where that of `config` ends, with the MLPs `activation`, at another peak of the rate.

    Raises:
      ValueError: there is no such activation.
    """
    tuned = with_mlps(config, activation)
    tuned.name = f"{config.name}_then_{activation}"
    tuned.start = config.copy_and_resolve_references()
    tuned.steps, tuned.every.checkpoint, tuned.every.eval = steps, steps, 50  # it changes most soon after the switch
    tuned.optimizer.learning_rate = learning_rate
    return tuned
