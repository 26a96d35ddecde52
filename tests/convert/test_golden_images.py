"""Image models against what torch made of the same checkpoints; test_peer_images.py keeps the file true."""

import jax
import numpy as np
import pytest

from sparsity.convert import hf, timm
from sparsity.layers.sparsify import Context
from tests.convert import images


def found_of(case, path):
    """The case's checkpoint, opened."""
    if case.startswith("resnet"):
        return timm.open_resnet(images.write_safetensors(path, images.resnet(case.split()[1])))
    if case.startswith("hf"):
        return hf.open_vit(images.write_safetensors(path, images.hf_vit(images.vit()), images.HF_CONFIG))
    tensors = images.timm_vit(images.vit(case.split()[1]))
    config = images.TIMM_CONFIG | {"global_pool": {"cls": "token", "gap": "avg"}[case.split()[1]]}
    return timm.open_vit(images.write_safetensors(path, tensors, config))


@pytest.mark.parametrize("case", ["hf", "timm cls", "timm gap", "resnet basic", "resnet bottleneck"])
def test_logits_are_those_of_torch(case, tmp_path):
    shape = images.RESNET_SHAPE if case.startswith("resnet") else images.SHAPE
    module, variables = images.variables_of(found_of(case, tmp_path))
    logits = jax.jit(lambda v, x: module.apply(v, x, Context()))(variables, images.batch(shape))
    expected = images.golden(case)
    assert np.abs(expected).max() > 0.3
    # Both are float32. The inputs are small: what rounding leaves of the patches is 1e-7 of a norm's input.
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_cases_differ_by_what_only_their_formats_say():
    """Epsilon and the pool: a mistake in either would show above."""
    cases = [images.golden(case) for case in ("hf", "timm cls", "timm gap")]
    for i, one in enumerate(cases):
        for other in cases[:i]:
            assert np.abs(one - other).max() > 1e-3
