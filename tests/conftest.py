"""Shared by all tests: 8 virtual CPU devices, set before jax is imported, and tiny configs."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

from sparsity import recipes


@pytest.fixture
def tiny_config():
    """A run of seconds: the quickstart's ViT, narrower and shorter, on one device."""
    config = recipes.vit_digits()
    config.name = "tiny"
    config.steps, config.batch = 6, 32
    config.mesh.data = 1
    config.model.d_model, config.model.layers, config.model.heads, config.model.mlp.d_ff = 16, 2, 2, 32
    config.every.record, config.every.eval, config.every.checkpoint, config.every.speed = 3, 3, 2, 2
    config.evals.names = ("accuracy", "calibration", "sparsity", "neurons", "cost")
    return config
