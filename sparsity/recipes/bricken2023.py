"""The noisy networks of Bricken et al. 2023, and what their studies change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

# Deviations of noise in Bricken et al. 2023, in the units of their data, and the deviation of these data:
# pixels in [0, 1], or latents. Embedded data get the same sigma / std(data).
BRICKEN_SIGMAS = (0.0, 0.05, 0.1, 0.3, 0.8, 1.5, 3.0, 10.0)
BRICKEN_STD = {"pixels": 0.25, "latents": 0.17}
EMBEDDED_STD = {"photos": 0.3185, "digits": 0.3762}  # of the training pixels: `tests/test_recipes.py` computes them


def autoencoder_photos(units: int = 400, steps: int = 12_000) -> ConfigDict:
    """The denoising autoencoder of Bricken et al. 2023 on grey 12x12 patches of two photographs, without noise."""
    data = {"name": "photos", "patch": 12, "contrast": "none"}
    return hastened(_autoencoder(f"ae{units}_photos", units, data, steps))


def autoencoder_digits(units: int = 200, steps: int = 4000) -> ConfigDict:
    """The same on handwritten digits of 8x8 pixels in [0, 1]."""
    data = {"name": "digits", "shift": 0, "pixels": "unit"}
    return hastened(_autoencoder(f"ae{units}_digits", units, data, steps))


def autoencoder_cifar10(units: int = 10_000, epochs: int = 3000) -> ConfigDict:
    """The denoising autoencoder of Bricken et al. 2023 on CIFAR10's pixels: batch 1024, Adam at 1e-4."""
    steps = 49 * epochs  # of their 50,000 images; the last batch of an epoch is a partial one there
    config = _autoencoder(f"ae{units}_cifar10", units, {"name": "cifar10", "held_out": 0.02, "pixels": "unit"}, steps)
    config.batch, config.optimizer.learning_rate, config.mesh.data = 1024, 1e-4, -1
    config.every = ConfigDict({"record": 490, "eval": 490, "checkpoint": 4900, "speed": 490})
    return config


def with_noise(config: ConfigDict, sigma: float, seed: int = 0, kind: str = "gaussian") -> ConfigDict:
    """`config` with noise on its input: `sigma` is the paper's, scaled to embedded data by the ratio of deviations."""
    config = config.copy_and_resolve_references()
    scaled = float(f"{sigma * noise_scale(config):.4g}")
    config.noise = ConfigDict({"name": kind, "sigma": scaled})
    config.name, config.seed = f"{config.name}_{kind}{sigma:g}_seed{seed}", seed
    return config


def noise_scale(config: ConfigDict) -> float:
    """What a sigma of the paper is multiplied by: std(data) over that of the paper's data; 1 for its own data."""
    std = EMBEDDED_STD.get(config.data.name)
    return 1.0 if std is None else std / BRICKEN_STD["pixels"]


def hastened(config: ConfigDict) -> ConfigDict:
    """`config` with Adam at 3e-3 after a warm-up and batches of 64: thousands of steps for the paper's 147,000.

    Rate times steps is 36 in 12,000 steps, the paper's 15. Without the warm-up the first steps at this rate kill half
    of the units where there is no noise. Sparsity is a matter of steps, not of examples: on photos at sigma .8,
    seed 0, batches of 64, 128 and 256 leave .7 to .9% of the units active after 16,000 steps.
    """
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate, config.optimizer.schedule.warmup = 3e-3, min(500, config.steps // 8)
    config.batch = 64
    return config


def _autoencoder(name: str, units: int, data: dict, steps: int) -> ConfigDict:
    """Adam at a constant rate, gradients clipped at norm 1; loss the mean over pixels; the authors' initialisation."""
    mlp = {"d_ff": units, "sparsifier": {"name": "relu"}, "init": "torch"}
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "steps": steps,
            "batch": 256,
            "keep": 1,
            "model": {"name": "autoencoder", "mlp": mlp},
            "data": data,
            "optimizer": {
                "learning_rate": 1e-3,
                "rule": {"name": "adamw", "weight_decay": 0.0},
                "schedule": {"name": "constant", "warmup": 0},
                "grad_clip": 1.0,
            },
            "mesh": {"data": 1, "model": 1},
            "every": {"record": max(steps // 40, 1), "eval": max(steps // 8, 1), "checkpoint": steps, "speed": 100},
            "evals": {"names": ("reconstruction", "sparsity", "neurons", "units"), "split": "test", "batch": 512},
        }
    )


# What the studies of annealing, controls, training time and flat regions add to the runs above.
BRICKEN_FIELDS = ("receptive_fields", "noise_covariance", "noise_terms")


def bricken_noise(config: ConfigDict, sigma: float, seed: int = 0) -> ConfigDict:
    """The run of the study `noise`, which other studies share: `with_noise`, and what it does to fields and loss."""
    config = with_noise(config, sigma, seed)
    if config.data.name in ("photos", "cifar10"):  # the digits' 8x8 pixels are too few to fit, latents are no image
        config.evals.names = (*config.evals.names, *BRICKEN_FIELDS)
    return config


def bricken_sigma(text: str) -> float:
    """The sigma of `BRICKEN_SIGMAS` that `text` is. Raises ValueError for any other."""
    sigmas = {f"{sigma:g}": sigma for sigma in BRICKEN_SIGMAS}
    if text not in sigmas:
        raise ValueError(f'unknown sigma "{text}"; valid: {", ".join(sigmas)}')
    return sigmas[text]


def as_classifier(config: ConfigDict) -> ConfigDict:
    """An autoencoder's run that learns the labels instead of the image, with the same hidden layer and training."""
    config = config.copy_and_resolve_references()
    mlp = config.model.mlp
    model = {"name": "mlp", "widths": (mlp.d_ff,), "sparsifier": mlp.sparsifier, "init": mlp.init}
    config.name, config.model = re.sub("^ae", "mlp", config.name), ConfigDict(model)
    config.evals.names = ("accuracy", *(name for name in config.evals.names if name != "reconstruction"))
    return config


def annealed(config: ConfigDict, start: int, length: int) -> ConfigDict:
    """`config`, a run with noise, whose noise is constant up to step `start`, then falls linearly to 0 in `length`."""
    config = config.copy_and_resolve_references()
    config.noise.schedule = ConfigDict({"name": "linear_to_zero", "start": start, "length": length})
    config.name = f"{config.name}_annealed"
    return config


def with_jacobian_penalty(config: ConfigDict, sigma: float, seed: int = 0) -> ConfigDict:
    """`config` without noise, penalised by what noise of the paper's `sigma` adds to the loss to first order."""
    config = config.copy_and_resolve_references()
    config.penalty = ConfigDict({"name": "jacobian", "sigma": float(f"{sigma * noise_scale(config):.4g}")})
    config.evals.names = (*config.evals.names, "receptive_fields")
    config.name, config.seed = f"{config.name}_jacobian{sigma:g}_seed{seed}", seed
    return config


def with_shared_bias(config: ConfigDict) -> ConfigDict:
    """`config`, an autoencoder's run, with one bias for all units."""
    config = config.copy_and_resolve_references()
    config.model.mlp.shared_bias, config.name = True, f"{config.name}_shared_bias"
    return config


def with_encoder_scale(config: ConfigDict, scale: float) -> ConfigDict:
    """`config`, an autoencoder's run, whose encoder weights start `scale` times as large."""
    config = config.copy_and_resolve_references()
    config.model.mlp.scale, config.name = scale, f"{config.name}_scale{scale:g}"
    return config


def with_steps(config: ConfigDict, steps: int) -> ConfigDict:
    """`config` at a constant rate for `steps` steps; by the same name if it has as many."""
    config = config.copy_and_resolve_references()
    if steps != config.steps:
        config.steps, config.name = steps, f"{config.name}_{steps}steps"
    return config


def with_activation(config: ConfigDict, activation: str) -> ConfigDict:
    """`config`, an autoencoder's run, with another activation; by the same name if it has it."""
    config = config.copy_and_resolve_references()
    if activation != config.model.mlp.sparsifier.name:
        config.model.mlp.sparsifier = ConfigDict({"name": activation})
        config.name = f"{config.name}_{activation}"
    return config


# Optimizers and dead units: Bricken et al. 2023, App. H.2, I and J.2.


def autoencoder_latents(units: int = 200, steps: int = 16_000) -> ConfigDict:
    """The denoising autoencoder of Bricken et al. 2023 on latents of digits, 256 numbers of the paper's size."""
    return _autoencoder(f"ae{units}_latents", units, {"name": "latents"}, steps)


def autoencoder_cifar10_latents(units: int = 1000, epochs: int = 800) -> ConfigDict:
    """The same on CIFAR10's latents, from latents/cifar10.npz: the paper's are not public."""
    config = autoencoder_cifar10(units, epochs)
    network = {"hidden": 256, "depth": 8, "kernel": 5, "patch": 2}  # the paper's, that the file's are to be made by
    of = {"name": "cifar10", "held_out": 0.02}
    config.name = f"ae{units}_cifar10_latents"
    config.data = ConfigDict({"name": "latents", "of": of, "file": "latents/cifar10.npz"} | network)
    return config


def mlp_latents(steps: int = 4000) -> ConfigDict:
    """The 3-layer classifier of Bricken et al. 2023, App. J.2, on latents of digits, without noise: Adam at 1e-3."""
    config = _autoencoder("mlp3x200_latents", 200, {"name": "latents"}, steps)
    config.model = ConfigDict({"name": "mlp", "widths": (200, 200, 200), "sparsifier": {"name": "relu"}})
    config.batch, config.every.eval = 64, max(steps // 20, 1)
    config.evals.names = ("accuracy", "sparsity", "neurons", "units")
    return config


def mlp_cifar10_latents(epochs: int = 2000) -> ConfigDict:
    """The same on CIFAR10's latents: 2,000 epochs of batch 1024, Adam at 1e-4."""
    config, run = mlp_latents(), autoencoder_cifar10_latents(epochs=epochs)
    config.name, config.data = "mlp3x200_cifar10_latents", run.data
    config.steps, config.batch, config.every, config.mesh = run.steps, run.batch, run.every, run.mesh
    config.optimizer.learning_rate = run.optimizer.learning_rate
    return config


def with_rule(config: ConfigDict, rule: str, learning_rate: float) -> ConfigDict:
    """`config` trained by the update rule `rule`, nothing else set of it, at a constant rate."""
    config = config.copy_and_resolve_references()
    config.optimizer.rule, config.optimizer.learning_rate = ConfigDict({"name": rule}), learning_rate
    config.optimizer.schedule = ConfigDict({"name": "constant", "warmup": 0})
    return config


# Deeper networks: Bricken et al. 2023, App. J.1 and J.3.


def gpt2_text(steps: int = 8000) -> ConfigDict:
    """A small GPT-2 of three blocks on the bytes of Python's documentation, without noise: Adam at 2e-3."""
    config = _autoencoder("gpt2_text", 256, {"name": "text", "length": 64, "stride": 64}, steps)
    config.model = _gpt2(d_model=64, heads=4, positions=64, dropout=0.0)
    config.batch, config.every.eval, config.optimizer.learning_rate = 4, max(steps // 16, 1), 2e-3
    config.evals.names, config.evals.split = ("language", "sparsity", "neurons", "units"), "validation"
    config.evals.batch = 64
    return config


def gpt2_wikitext() -> ConfigDict:
    """Three blocks of GPT-2's width, heads and context on the bytes of WikiText-103, from files in wikitext-103/."""
    config, length = gpt2_text(steps=1_700_000), 1024
    config.name = "gpt2_wikitext"
    config.data = ConfigDict({"name": "wikitext", "path": "wikitext-103", "length": length, "stride": length})
    config.model = _gpt2(d_model=768, heads=12, positions=length, dropout=0.1)
    config.batch = config.evals.batch = 32
    config.optimizer.learning_rate, config.mesh.data = 1e-4, -1
    config.every = ConfigDict({"record": 1000, "eval": 10_000, "checkpoint": 10_000, "speed": 1000})
    return config


def _gpt2(d_model: int, heads: int, positions: int, dropout: float) -> ConfigDict:
    mlp = {"d_ff": 4 * d_model, "sparsifier": {"name": "relu"}, "init": "gpt2"}
    sizes = {"d_model": d_model, "layers": 3, "heads": heads, "positions": positions, "dropout": dropout}
    return ConfigDict({"name": "gpt2", "mlp": mlp, **sizes})


def with_mlp_noise(config: ConfigDict, sigma: float, removed: int, seed: int = 0) -> ConfigDict:
    """`config`, a GPT-2's run, with noise after the LayerNorm in front of every MLP, none from step `removed` on.

    Sigma is the paper's at any scale: what comes out of a LayerNorm has deviation 1 at the start, whatever the data.
    """
    config = with_noise(config, sigma, seed)
    config.model.mlp.noise, config.noise = config.noise, None
    config.model.mlp.noise.schedule = ConfigDict({"name": "removed_at", "step": removed})
    config.evals.noise = True
    return config


def before_norm(config: ConfigDict) -> ConfigDict:
    """`config`, a GPT-2's run with noise in front of its MLPs, with that noise before the LayerNorm instead."""
    config = config.copy_and_resolve_references()
    config.model.noise_before_norm, config.name = True, f"{config.name}_before_norm"
    return config


def alexnet_digits(steps: int = 3500) -> ConfigDict:
    """A narrow AlexNet on handwritten digits of 8x8 pixels in [0, 1], without noise: Adam at 1e-3."""
    config = _autoencoder("alexnet_digits", 1, {"name": "digits", "shift": 0, "pixels": "unit"}, steps)
    sizes = {"channels": (16, 32, 48, 32, 32), "widths": (128, 128), "stride": 1}
    config.model = ConfigDict({"name": "alexnet", "sparsifier": {"name": "relu"}, **sizes, "init": "he"})
    config.batch, config.every.eval = 64, max(steps // 20, 1)
    config.evals.names = ("accuracy", "sparsity", "neurons", "units")
    return config


def alexnet_cifar10(epochs: int = 3500) -> ConfigDict:
    """AlexNet on CIFAR10's pixels: 3,500 epochs of batch 1024, Adam at 1e-4 (Bricken et al. 2023, App. J.3)."""
    config, run = alexnet_digits(), autoencoder_cifar10(epochs=epochs)
    config.name, config.data = "alexnet_cifar10", run.data
    config.model = ConfigDict({"name": "alexnet", "sparsifier": {"name": "relu"}})
    config.steps, config.batch, config.every, config.mesh = run.steps, run.batch, run.every, run.mesh
    config.optimizer.learning_rate = run.optimizer.learning_rate
    return config


def after_convolutions(config: ConfigDict, sigma: float) -> ConfigDict:
    """`config`, an AlexNet's run, with its noise after the convolutions instead, `sigma` in the units found there."""
    config = config.copy_and_resolve_references()
    config.model.noise, config.noise = config.noise, None
    config.model.noise.sigma = sigma
    return config


# What the studies of ablations, activations and fronts add to the runs above.
BRICKEN_PIXELS = 3072  # numbers in an image of the paper
EMBEDDED_PIXELS = {"photos": 144, "digits": 64}


def with_salt_and_pepper(config: ConfigDict, probability: float, seed: int = 0) -> ConfigDict:
    """`config` with every number of its input set to 0 or 1, with equal odds, with `probability`."""
    config = config.copy_and_resolve_references()
    config.noise = ConfigDict({"name": "salt_and_pepper", "probability": probability})
    config.name, config.seed = f"{config.name}_salt_and_pepper{probability:g}_seed{seed}", seed
    return config


def noise_then_none(config: ConfigDict, sigma: float, seed: int = 0) -> ConfigDict:
    """`config` with noise that falls to 0 from one half to three quarters of training (Bricken et al. 2023, App. D)."""
    return annealed(with_noise(config, sigma, seed), config.steps // 2, config.steps // 4)


def on_the_front(config: ConfigDict, sigma: float, seed: int = 0) -> ConfigDict:
    """A run of noise alone, as the studies of fronts share it: `noise_then_none`, or the run of `noise` without any."""
    if sigma == 0:
        return bricken_noise(config, sigma, seed)
    return also_evaluated(noise_then_none(config, sigma, seed), "exemplars")


def with_l1(config: ConfigDict, weight: float) -> ConfigDict:
    """`config`, an autoencoder's run, with the paper's L1 `weight`, scaled to embedded data by `l1_scale`."""
    config = config.copy_and_resolve_references()
    config.penalty = ConfigDict({"name": "l1", "weight": float(f"{weight * l1_scale(config):.4g}")})
    config.name = f"{config.name}_l1_{weight:g}"
    return config


def l1_scale(config: ConfigDict) -> float:
    """What a weight of L1 in the paper is multiplied by; 1 for its own data.

    With the mean over D pixels as the loss, L1 of weight w on the coefficients of orthonormal atoms is soft
    thresholding at w D / 2: the threshold keeps its ratio to std(data).
    """
    pixels = EMBEDDED_PIXELS.get(config.data.name)
    return 1.0 if pixels is None else noise_scale(config) * BRICKEN_PIXELS / pixels


def with_unit_norms(config: ConfigDict) -> ConfigDict:
    """`config`, an autoencoder's run, that keeps every unit's incoming and outgoing weights at L2 norm 1."""
    config = config.copy_and_resolve_references()
    config.optimizer.unit_norm = (("hidden/wi/kernel", 0), ("hidden/wo/kernel", 1))
    config.name = f"{config.name}_unit_norm"
    return config


def with_kept_share(config: ConfigDict, share: float) -> ConfigDict:
    """`config`, an autoencoder's run, with Top-k: all units, falling to a `share` of them in a quarter of training."""
    config = config.copy_and_resolve_references()
    k = round(share * config.model.mlp.d_ff)
    config.model.mlp.sparsifier = ConfigDict({"name": "top_k", "k": k, "anneal": config.steps // 4})
    config.name = f"{config.name}_top_k_{share:g}"
    return config


def with_clip(config: ConfigDict, tau: float, clip: float) -> ConfigDict:
    """`config`, an autoencoder's run, with clipped ReLU; threshold and clip are multiples of std(data)."""
    config = config.copy_and_resolve_references()
    std = EMBEDDED_STD.get(config.data.name, BRICKEN_STD["pixels"])
    settings = {"tau": float(f"{tau * std:.4g}"), "m": float(f"{clip * std:.4g}")}
    config.model.mlp.sparsifier = ConfigDict({"name": "clipped_relu", **settings})
    config.name = f"{config.name}_clipped_{clip:g}"
    return config


def bricken_arm(arg: str, arms: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[str, str, float]:
    """Scale, arm and value of "[paper/]ARM/VALUE"; `arms` are the values of every arm, by scale.

    Raises:
      ValueError: a run that is not among them.
    """
    where, _, text = arg.rpartition("/")
    scale, _, arm = where.rpartition("/")
    scale = scale or "embedded"
    values = {f"{value:g}": value for value in arms.get(scale, {}).get(arm, ())}
    if text not in values:
        there = ", ".join(f"{arm}/{'|'.join(f'{v:g}' for v in of_arm)}" for arm, of_arm in arms["embedded"].items())
        raise ValueError(f'unknown run "{arg}"; valid: {there}; paper/... at the paper\'s scale')
    return scale, arm, values[text]


def also_evaluated(config: ConfigDict, *names: str) -> ConfigDict:
    """`config` with more evaluators at the end."""
    config = config.copy_and_resolve_references()
    config.evals.names = (*config.evals.names, *names)
    return config


# What the studies beyond the paper add: robustness and gentle annealing.


def with_corruptions(config: ConfigDict) -> ConfigDict:
    """`config`, a classifier's run, also evaluated under corruptions and for calibration (Li et al. 2022, Table 1)."""
    config = also_evaluated(config, "calibration", "robustness")
    # CIFAR-C's constants hardly touch the digits, whose contrast is high.
    config.evals.corruptions = "imagenet_c" if config.data.name == "digits" else "auto"
    return config


def as_top_k_classifier(config: ConfigDict, share: float) -> ConfigDict:
    """`as_classifier` with Top-k, reached as in `with_kept_share`."""
    return as_classifier(with_kept_share(config, share))


def geometrically_annealed(config: ConfigDict, start: int, length: int, end: float, kept: bool = False) -> ConfigDict:
    """`config`, a run with noise, whose noise falls by equal factors from step `start` to a share `end` in `length`.

    Then it is 0, or stays what it is if `kept`.
    """
    config = config.copy_and_resolve_references()
    schedule = {"name": "geometric", "start": start, "length": length, "end": end, "kept": kept}
    config.noise.schedule = ConfigDict(schedule)
    config.name = f"{config.name}_geometric{'_kept' if kept else ''}"
    return config
