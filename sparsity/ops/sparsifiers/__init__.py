"""Sparsifiers: functions from pre-activations z to activations h, many of them zero.

The one table, `SPARSIFIERS`, makes an entry usable by name in every model and config. To add
one, write a frozen dataclass with `__call__` and put it in the table: the tests walk it.

Every elementwise entry is written once over `xp` (jax.numpy or numpy) so that the theory can
integrate it in float64, and lets NaN through: NaN is never counted as sparse. At a kink the
derivative is that of the zero (or clipped) side, as in the papers' implementations.

>>> SPARSIFIERS["clipped_relu"](sparsity=0.85, slope=0.7)
ClippedRelu(tau=1.036433389, m=1.17036734, sparsity=0.85, slope=0.7, q=1.0)
"""

from sparsity.ops.sparsifiers.base import Sparsifier
from sparsity.ops.sparsifiers.dense_references import Elu, Gelu, GeluTanh, Sat, Sigmoid, Silu, Tanh
from sparsity.ops.sparsifiers.thresholds import (
    ClippedRelu,
    ClippedSoftThreshold,
    JumpRelu,
    ReflectedRelu,
    Relu,
    ReluSquared,
    ShiftedRelu,
    SmoothClippedRelu,
    SmoothClippedSoftThreshold,
    SoftThreshold,
)
from sparsity.ops.sparsifiers.top_k import TopK

SPARSIFIERS: dict[str, type[Sparsifier]] = {
    "relu": Relu,
    "shifted_relu": ShiftedRelu,
    "soft_threshold": SoftThreshold,
    "clipped_relu": ClippedRelu,
    "clipped_soft_threshold": ClippedSoftThreshold,
    "smooth_clipped_relu": SmoothClippedRelu,
    "smooth_clipped_soft_threshold": SmoothClippedSoftThreshold,
    "jump_relu": JumpRelu,
    "relu_squared": ReluSquared,
    "reflected_relu": ReflectedRelu,
    "top_k": TopK,
    "gelu": Gelu,
    "gelu_tanh": GeluTanh,
    "silu": Silu,
    "elu": Elu,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "sat": Sat,
}
