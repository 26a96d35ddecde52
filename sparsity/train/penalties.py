"""Penalties on a network's activations, added to its loss in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sparsity.layers.sparsify import Activated, mean_over_tokens


@dataclasses.dataclass(frozen=True)
class Penalty:
    """Base of all penalties: what is added to the loss of every item (an example; a token of a language model)."""

    def __call__(self, model: Any, params: Any, layers: Mapping[str, Activated]) -> jax.Array:
        """The penalty of each example [B].

        Args:
          model: the model's settings.
          params: its parameters.
          layers: pre-activations and activations [B, ..., F] of every hidden layer, by the path of its module.
        """
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Raises ValueError if the penalty is not defined for `model`."""


@dataclasses.dataclass(frozen=True)
class L1(Penalty):
    """weight * sum over layers and units of |h|, mean over tokens (Bricken et al. 2023, App. D; Li et al., App. C).

    Attributes:
      weight: of the sum over units; of their mean it would be d_ff times as large.
    """

    weight: float

    def __post_init__(self):
        _check_weight(self.weight)

    def __call__(self, model, params, layers):
        return self.weight * _over_layers(layers, jnp.abs)


@dataclasses.dataclass(frozen=True)
class L2(Penalty):
    """weight * sum over layers and units of h^2, mean over tokens (Li et al. 2022, App. C).

    Attributes:
      weight: of the sum over units; of their mean it would be d_ff times as large.
    """

    weight: float

    def __post_init__(self):
        _check_weight(self.weight)

    def __call__(self, model, params, layers):
        return self.weight * _over_layers(layers, jnp.square)


def _check_weight(weight: float) -> None:
    if weight < 0:
        raise ValueError(f"weight: must be at least 0, got {weight}")


def _over_layers(layers: Mapping[str, Activated], size) -> jax.Array:
    """Sum over layers and units of size(h), mean over real tokens (0 if there are none): [B]."""
    totals = ((size(layer.h.astype(jnp.float32)).sum(-1), layer.weight_BxL) for layer in layers.values())
    return sum(mean_over_tokens(total, weight_BxL) for total, weight_BxL in totals)


@dataclasses.dataclass(frozen=True)
class Jacobian(Penalty):
    """sigma^2 ||J(x)||_F^2 / n of a network of one hidden layer, J = dy / dx with n outputs: exact.

    What first-order Taylor expansion says that Gaussian noise of deviation sigma adds to the squared error, its mean
    over n outputs (Bishop 1995; Bricken et al. 2023, Eq. 26). With J = W_o^T diag(phi'(z)) W_i^T,
    ||J||_F^2 = phi'^T [(W_i^T W_i) o (W_o W_o^T)] phi'.

    Attributes:
      sigma: in the units of the model's input.
    """

    sigma: float

    def __post_init__(self):
        if self.sigma < 0:
            raise ValueError(f"sigma: must be at least 0, got {self.sigma}")

    def __call__(self, model, params, layers):
        (layer,) = layers.values()
        z_BxF = layer.z.reshape(len(layer.z), -1)
        slope_BxF = jax.jvp(model.mlp.sparsifier, (z_BxF,), (jnp.ones_like(z_BxF),))[1]
        wi_DxF, wo_FxN = (params["hidden"][name]["kernel"] for name in ("wi", "wo"))
        coupling_FxF = (wi_DxF.T @ wi_DxF) * (wo_FxN @ wo_FxN.T)
        return self.sigma**2 / wo_FxN.shape[1] * jnp.einsum("bf,bf->b", slope_BxF @ coupling_FxF, slope_BxF)

    def check(self, model):
        if model.task != "reconstruction" or not model.mlp.sparsifier.elementwise or model.mlp.dropout:
            raise ValueError("penalty: jacobian is that of an autoencoder whose units act one by one, without dropout")


PENALTIES: dict[str, type[Penalty]] = {"l1": L1, "l2": L2, "jacobian": Jacobian}
