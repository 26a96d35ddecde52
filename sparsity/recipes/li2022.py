"""A small ViT, and Top-k in its MLPs: Li et al. 2022."""

from __future__ import annotations

from ml_collections import ConfigDict


def vit_digits() -> ConfigDict:
    """A small ReLU ViT on scikit-learn's handwritten digits; minutes on two CPU cores."""
    return ConfigDict(
        {
            "name": "vit_digits",
            "seed": 0,
            "steps": 2000,
            "batch": 128,
            "accumulate": 1,
            "keep": 2,
            "model": {
                "name": "vit",
                "d_model": 64,
                "layers": 4,
                "heads": 4,
                "patch": 4,
                "pool": "gap",
                "dropout": 0.0,
                "dtype": "float32",
                "mlp": {
                    "d_ff": 512,
                    "sparsifier": {"name": "relu"},
                    "gated": False,
                    "use_bias": True,
                    "dropout": 0.0,
                    "init": "xavier",
                },
            },
            "data": {"name": "digits", "shift": 1},
            "optimizer": {
                "learning_rate": 3e-3,
                "rule": {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1},
                "schedule": {"name": "cosine", "warmup": 50},
                "grad_clip": 1.0,
            },
            "mesh": {"data": -1, "model": 1},
            "every": {"record": 50, "eval": 250, "checkpoint": 250, "speed": 50},
            "evals": {
                "names": ("accuracy", "calibration", "robustness", "sparsity", "neurons", "cost"),
                "split": "test",
                "batch": 128,
                "ece_bins": 15,
                # CIFAR-C's constants hardly touch these high-contrast images.
                "corruptions": "imagenet_c",
            },
        }
    )


def with_top_k(config: ConfigDict, k: int) -> ConfigDict:
    """`config` with Top-k MLPs (Li et al. 2022, Eq. 9), nothing else changed but the name."""
    config = config.copy_and_resolve_references()
    config.model.mlp.sparsifier = ConfigDict({"name": "top_k", "k": k, "act": "relu", "method": "exact"})
    config.name = f"{config.name}_top_{k}"
    return config
