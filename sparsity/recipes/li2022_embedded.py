"""Li et al. 2022 on embedded data, but for T5: ViTs, a BERT, a Mixer, ResNets and MLPs of two layers, minutes each."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from sparsity.recipes.li2022 import RESNETS, bert_model, mixer_model, resnet_model, vit_arm, vit_digits, with_top_k

ADAM = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
OPTIMIZERS = {"sgd": {"name": "sgd", "momentum": 0.0}, "momentum": {"name": "sgd", "momentum": 0.9}, "adam": ADAM}
# d_model (16 a head), layers and d_ff, by name; "base" is `vit_digits`.
VIT_DIGITS_SIZES = {"small": (32, 2, 256), "base": (64, 4, 512), "large": (96, 6, 768)}


def vit_digits_of(size: str) -> ConfigDict:
    """One of three ViTs on digits: "small", "base", which is `vit_digits`, and "large".

    Raises:
      ValueError: there is no such size.
    """
    if size not in VIT_DIGITS_SIZES:
        raise ValueError(f'unknown size of ViT on digits "{size}"; valid: {", ".join(VIT_DIGITS_SIZES)}')
    config = vit_digits()
    d_model, layers, d_ff = VIT_DIGITS_SIZES[size]
    config.model.update({"d_model": d_model, "layers": layers, "heads": d_model // 16})
    config.model.mlp.d_ff = d_ff
    if size != "base":
        config.name = f"{config.name}_{size}"
    return config


def vit_calibrated_arm(config: ConfigDict, k: int | None = None, noise: float = 0.0, seed: int = 0) -> ConfigDict:
    """`vit_arm`, its calibration measured while it trains: a run of Li et al.'s Table 1, and what is compared to it."""
    config = vit_arm(config, k, noise, seed)
    config.evals.during = ("calibration",)
    return config


def with_few_examples(config: ConfigDict, examples: int, seed: int = 0) -> ConfigDict:
    """`config`, a classifier's run, on so many of the training examples (Li et al. 2022, Fig. 2c)."""
    config = config.copy_and_resolve_references()
    config.data = ConfigDict({"name": "subset", "of": config.data, "examples": examples, "seed": seed})
    config.name = f"{config.name}_{examples}_examples"
    return config


def with_random_images(config: ConfigDict, seed: int = 0) -> ConfigDict:
    """`config`, a classifier's run, on random pixels with the labels of its data (Li et al. 2022, Fig. 5b)."""
    config = config.copy_and_resolve_references()
    config.data = ConfigDict({"name": "random_images", "of": config.data, "seed": seed})
    config.name = f"{config.name}_random_images"
    return config


def with_infinite_data(config: ConfigDict, seed: int = 0) -> ConfigDict:
    """`config`, a classifier's run, on random pixels and labels, none of them twice (Li et al. 2022, Fig. 5c)."""
    config = config.copy_and_resolve_references()
    config.data = ConfigDict({"name": "random_data", "of": config.data, "seed": seed})
    config.name = f"{config.name}_infinite_data"
    return config


def with_penalty(config: ConfigDict, penalty: str, weight: float) -> ConfigDict:
    """`config` with an L1 or L2 penalty on every activation (Li et al. 2022, App. C); its `weight` is of the sum.

    Raises:
      ValueError: another penalty.
    """
    if penalty not in ("l1", "l2"):
        raise ValueError(f'unknown penalty "{penalty}" on activations; valid: l1, l2')
    config = config.copy_and_resolve_references()
    config.penalty = ConfigDict({"name": penalty, "weight": weight})
    config.name = f"{config.name}_{penalty}_{weight:g}"
    return config


def with_gelu(config: ConfigDict) -> ConfigDict:
    """`config` with GELU in its MLPs, whose activations are all but never zero."""
    config = config.copy_and_resolve_references()
    config.model.mlp.sparsifier, config.name = ConfigDict({"name": "gelu"}), f"{config.name}_gelu"
    return config


def with_statistical_top_k(config: ConfigDict, k: int) -> ConfigDict:
    """`config` with MLPs that keep about k units, those above a threshold found by counting (`ops.top_k`)."""
    name, config = f"{config.name}_statistical_{k}", with_top_k(config, k)
    config.model.mlp.sparsifier.method, config.name = "statistical", name
    return config


def with_annealed_mlp_noise(config: ConfigDict, sigma: float) -> ConfigDict:
    """`config` with Gaussian noise on what every MLP reads, after the norm, where deviations are about 1.

    It is constant for half of the steps and falls in a straight line to 0 at three quarters of them, as in
    `noise_then_none` (Bricken et al. 2023, App. D).
    """
    config = config.copy_and_resolve_references()
    fall = {"name": "linear_to_zero", "start": config.steps // 2, "length": config.steps // 4}
    config.model.mlp.noise = ConfigDict({"name": "gaussian", "sigma": sigma, "schedule": fall})
    config.name = f"{config.name}_gaussian{sigma:g}_annealed"
    return config


def with_clipped_mlp(config: ConfigDict, sparsity: float, slope: float = 0.7) -> ConfigDict:
    """`config` with clipped ReLUs in its MLPs, which start on the edge of chaos (Price et al. 2024, Sec. 3).

    Args:
      sparsity: share of zeros at the start, in [.5, 1).
      slope: V'(q) there, which settles the clip; MLPs have biases, which this edge of chaos needs.
    """
    config = config.copy_and_resolve_references()
    config.model.mlp.sparsifier = ConfigDict({"name": "clipped_relu", "sparsity": sparsity, "slope": slope})
    config.model.mlp.update({"init": "edge_of_chaos", "use_bias": True})
    config.name = f"{config.name}_crelu_{sparsity:g}_{slope:g}"
    return config


def with_d_ff(config: ConfigDict, d_ff: int) -> ConfigDict:
    """`config` with so many hidden units in every MLP."""
    config = config.copy_and_resolve_references()
    config.model.mlp.d_ff, config.name = d_ff, f"{config.name}_f{d_ff}"
    return config


def with_imposed(config: ConfigDict, ks: tuple[int, ...]) -> ConfigDict:
    """`config`, a ViT's run, evaluated also with Top-k of each of `ks` in the place of its own activations."""
    config = config.copy_and_resolve_references()
    config.evals.names, config.evals.imposed_k = (*config.evals.names, "imposed"), ks
    return config


def bert_text(steps: int = 2500) -> ConfigDict:
    """A small ReLU BERT that fills in bytes of Python's documentation: BERT's AdamW at a higher rate.

    As in Devlin et al. 2019 the rate falls to 0 in a straight line after a warm-up, here a twenty-fifth of the steps.
    """
    model = bert_model("base", dropout=0.0)
    model.update({"d_model": 64, "layers": 4, "heads": 4, "positions": 64})
    model.mlp.d_ff = 512
    return ConfigDict(
        {
            "name": "bert_text",
            "seed": 0,
            "steps": steps,
            "batch": 32,
            "keep": 1,
            "model": model,
            "data": {"name": "masked_text", "length": 64, "stride": 16},
            "optimizer": {
                "learning_rate": 2e-3,
                "rule": ADAM | {"eps": 1e-6, "weight_decay": 0.01},
                "schedule": {"name": "linear", "warmup": steps // 25},
                "grad_clip": 1.0,
            },
            "mesh": {"data": 1, "model": 1},
            "every": {"record": steps // 40, "eval": steps // 4, "checkpoint": steps // 4, "speed": 50},
            "evals": {"names": ("language", "sparsity", "neurons"), "split": "test", "batch": 128},
        }
    )


def mixer_digits() -> ConfigDict:
    """A small ReLU Mixer on handwritten digits: the ViT of `vit_digits`, its patches halved, mixed by MLPs.

    As in Mixer-B/16 a token MLP has an eighth of a channel MLP's units, and the weight decay is Li et al.'s.
    """
    config = vit_digits()
    model = mixer_model("B/16")
    model.update({"patch": 2, "d_model": config.model.d_model, "layers": config.model.layers})
    model.mlp.d_ff, model.token_mlp.d_ff = config.model.mlp.d_ff, config.model.mlp.d_ff // 8
    config.name, config.model, config.optimizer.rule.weight_decay = "mixer_digits", model, 0.03
    config.evals.names = ("accuracy", "sparsity", "neurons")
    return config


def resnet_digits(block: str = "basic", width: int = 8, steps: int = 1000) -> ConfigDict:
    """A ResNet of three stages of two blocks on handwritten digits: SGD with momentum, a cosine from .05.

    Args:
      block: "basic", those of ResNet-18, or "bottleneck", those of ResNet-50.
      width: channels inside the blocks of the first stage.
      steps: of training.

    Raises:
      ValueError: another block.
    """
    depths = {kind: depth for depth, (kind, _) in RESNETS.items()}
    if block not in depths:
        raise ValueError(f'unknown block "{block}"; valid: {", ".join(depths)}')
    config = vit_digits()
    config.model = resnet_model(depths[block], width)
    config.model.update({"blocks": (2, 2, 2), "stem": "small"})
    config.name, config.steps, config.batch, config.keep = f"resnet_{block}_w{width}_digits", steps, 64, 1
    config = with_optimizer(config, "momentum", 0.05)
    config.optimizer.grad_clip = None
    config.every.update({"record": steps // 40, "eval": steps // 4, "checkpoint": steps})
    config.evals.names = ("accuracy", "sparsity", "neurons")
    return config


def mlp_digits(width: int = 128) -> ConfigDict:
    """A two-layer ReLU MLP on handwritten digits, 200 epochs."""
    return _mlp(f"mlp{width}_digits", width, {"name": "digits", "shift": 0})


def mlp_mnist(width: int = 128) -> ConfigDict:
    """The two-layer ReLU MLP of Li et al. 2022, App. E, on MNIST: 200 epochs of its 60,000 images less 1,000."""
    return _mlp(f"mlp{width}_mnist", width, {"name": "mnist", "held_out": 1 / 60})


_EXAMPLES = {"digits": 1260, "mnist": 59_000}  # to train on


def _mlp(name: str, width: int, data: dict[str, Any]) -> ConfigDict:
    batch = 128
    steps = 200 * _EXAMPLES[data["name"]] // batch
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "steps": steps,
            "batch": batch,
            "keep": 1,
            "model": {"name": "mlp", "widths": (width,), "sparsifier": {"name": "relu"}, "init": "torch"},
            "data": data,
            "optimizer": {
                "learning_rate": 0.1,
                "rule": OPTIMIZERS["sgd"],
                "schedule": {"name": "constant", "warmup": 0},
                "grad_clip": None,
            },
            "mesh": {"data": 1, "model": 1},
            "every": {"record": steps // 40, "eval": steps, "checkpoint": steps, "speed": 100},
            "evals": {"names": ("accuracy", "sparsity"), "split": "test", "batch": 128},
        }
    )


def mlp_arm(config: ConfigDict, data: str, optimizer: str, learning_rate: float, seed: int = 0) -> ConfigDict:
    """An MLP of one seed on its data or on random ones: "mlp128_digits_random_adam_rate0.001_seed0".

    Args:
      data: "real"; "random", as many images of uniform pixels with random labels, drawn by the run's seed; "infinite",
        new ones in every step (Li et al. 2022, App. E).
      optimizer: of `OPTIMIZERS`.

    Raises:
      ValueError: other data, or another optimizer.
    """
    if data not in ("real", "random", "infinite"):
        raise ValueError(f'unknown data "{data}"; valid: real, random, infinite')
    config = config.copy_and_resolve_references()
    if data != "real":
        examples = _EXAMPLES[config.data.name] if data == "random" else None
        config.data = ConfigDict({"name": "random_data", "of": config.data, "examples": examples, "seed": seed})
    config.name += f"_{data}"
    return optimizer_arm(config, optimizer, learning_rate, seed)


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """`config` of one seed, named by it: "bert_text_seed0"."""
    config = config.copy_and_resolve_references()
    config.name, config.seed = f"{config.name}_seed{seed}", seed
    return config


def optimizer_arm(config: ConfigDict, optimizer: str, learning_rate: float, seed: int = 0) -> ConfigDict:
    """`config` of one seed trained by one of `OPTIMIZERS`, named by that: "vit_digits_momentum_rate0.1_seed0".

    Raises:
      ValueError: there is no such optimizer.
    """
    config = with_optimizer(config, optimizer, learning_rate)
    config.name += f"_{optimizer}_rate{learning_rate:g}"
    return with_seed(config, seed)


def with_optimizer(config: ConfigDict, optimizer: str, learning_rate: float) -> ConfigDict:
    """`config` trained by one of `OPTIMIZERS` at that (peak) rate; name, schedule and clip stay.

    Raises:
      ValueError: there is no such optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f'unknown optimizer "{optimizer}"; valid: {", ".join(OPTIMIZERS)}')
    config = config.copy_and_resolve_references()
    config.optimizer.rule, config.optimizer.learning_rate = ConfigDict(OPTIMIZERS[optimizer]), learning_rate
    return config
