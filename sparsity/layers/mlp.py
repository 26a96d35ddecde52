"""`SparseMLP`: the one MLP of the code."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import flax
import flax.linen as nn
import jax
from flax.typing import Initializer

from sparsity import axes
from sparsity.config import later, one_of
from sparsity.layers import initializers
from sparsity.layers.dense import dense, named
from sparsity.layers.inference import INFERENCE, Inference
from sparsity.layers.inference.search import PREDICTOR
from sparsity.layers.noise import Noise
from sparsity.layers.predictor import Predictor
from sparsity.layers.sparsify import STATS, Context, Sparsify
from sparsity.layers.tail import LEAST, LEAST_ACTIVATION, TAIL, without_tail
from sparsity.ops.noise import NOISES, NoiseConfig
from sparsity.ops.sparse_matmul import TOKENS
from sparsity.ops.sparsifiers import SPARSIFIERS, Sparsifier, TopK
from sparsity.theory.edge_of_chaos import EdgeOfChaos


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Settings of a `SparseMLP`.

    Attributes:
      d_ff: hidden units F.
      sparsifier: what makes h from the pre-activation z, by name from `SPARSIFIERS`.
      gated: h = sparsifier(x W_i) * (x W_gate), as in T5 v1.1 and Llama; the recorded nonzeros are
        those of the sparsifier, before the product.
      gate: what acts on x W_gate of a gated MLP, by name from `SPARSIFIERS`: ReLUs on both branches are Song et al.
        2024's dReLU. The recorded nonzeros are then those of the product, which is what W_o reads.
      use_bias: biases on all matrices (ViT: yes; T5: no).
      dropout: rate applied to h, after the nonzeros were counted.
      noise: added to what W_i reads, in training; at every unit it is Gaussian noise of covariance sigma^2 W_i^T W_i
        (Bricken et al. 2023, Eqs. 2 and 20).
      shared_bias: b_i is one number, the same of all units (Bricken et al. 2023, Sec. 3), 0 at the start.
      scale: factor on W_i at the start (Bricken et al. 2023, Fig. 9).
      shared_dropout: the units that dropout zeroes are the same for all tokens of an example, as in T5.
      init: "xavier" draws both matrices from Xavier's uniform distribution and starts biases at 0.
        "torch" draws matrices and biases from U(+-1 / sqrt(fan_in)), the default of torch's `nn.Linear`.
        "gpt2" draws matrices from N(0, .02^2) and starts biases at 0, see `initializers.gpt2_weights`.
        "t5" draws matrices from a truncated normal distribution of variance 1 / fan_in and starts biases at 0.
        "edge_of_chaos" carries Price et al. 2024 over to a residual block, whose MLP reads a normalised input:
        W_i ~ N(0, 1 / fan_in), so that pre-activations are N(0, 1) and the sparsifier's target sparsity holds
        from the start, and W_o, b_o on the edge of chaos at q* = 1, so that outputs have variance 1 too.
      predictor: rank of what learns beside Top-k which units it keeps, see `layers.predictor`; 0 is none. Mode
        `low_rank` of this rank finds its candidates with it.
      inference: how the MLP is computed in decoding, by name from `INFERENCE`, from weights laid out for that, see
        `decode.weights.prepared`; None, in training.
    """

    d_ff: int
    sparsifier: Sparsifier = one_of(SPARSIFIERS)
    gated: bool = False
    use_bias: bool = True
    dropout: float = 0.0
    init: Literal["xavier", "torch", "gpt2", "t5", "edge_of_chaos"] = "xavier"
    noise: NoiseConfig | None = one_of(NOISES, None, later=True)
    shared_bias: bool = later(False)
    scale: float = later(1.0)
    shared_dropout: bool = later(False)
    gate: Sparsifier | None = one_of(SPARSIFIERS, None, later=True)
    predictor: int = later(0)
    inference: Inference | None = one_of(INFERENCE, None, later=True)

    def __post_init__(self):
        if self.d_ff < 1:
            raise ValueError(f"d_ff: must be at least 1, got {self.d_ff}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")
        if self.scale <= 0:
            raise ValueError(f"scale: must be positive, got {self.scale}")
        if self.shared_bias and not self.use_bias:
            raise ValueError("shared_bias: there is no bias to share (use_bias is off)")
        if self.gate is not None and not self.gated:
            raise ValueError("gate: an MLP that is not gated has none")
        for field in ("sparsifier", "gate"):
            try:
                if (entry := getattr(self, field)) is not None:
                    entry.check_width(self.d_ff)
            except ValueError as error:
                raise ValueError(f"{field}.{error}") from error
        if self.predictor < 0 or (self.predictor and not isinstance(self.sparsifier, TopK)):
            raise ValueError(f"predictor: a rank of at least 0, and 0 but for top_k, is needed, got {self.predictor}")
        if self.predictor and self.gate is not None:
            raise ValueError("predictor: with a gate units are not zero by Top-k alone")
        if self.inference is not None:
            self.inference.check(self)
        if self.init == "edge_of_chaos":
            if self.gated:
                raise ValueError("init: there is no edge of chaos of a gated MLP here; use xavier")
            if self.edge.sigma_b2 > 0 and not self.use_bias:
                raise ValueError(
                    f"init: this sparsifier's edge of chaos needs biases of variance {self.edge.sigma_b2:.3g}"
                )

    @functools.cached_property
    def edge(self) -> EdgeOfChaos:
        """Where `init = "edge_of_chaos"` starts W_o and b_o."""
        return initializers.edge_of(self.sparsifier, 1.0)

    def reduced(self, parts: int) -> MLPConfig:
        """The same MLP, narrow, its sparsifier in proportion; `parts` devices split its units."""
        d_ff = axes.narrowed(self.d_ff, parts, 32)
        resized = lambda entry: None if entry is None else entry.resized(self.d_ff, d_ff)
        rank = min(self.predictor, 4)
        return dataclasses.replace(
            self, d_ff=d_ff, predictor=rank, sparsifier=resized(self.sparsifier), gate=resized(self.gate)
        )


class SparseMLP(nn.Module):
    """y = dropout(Sparsify(x~ W_i + b_i) [* gate(x~ W_gate + b_gate)]) W_o + b_o, x~ = x + noise if there is noise.

    Li et al. 2022, Eq. 1 and, with the `top_k` sparsifier, Eq. 9; Bricken et al. 2023, Eq. 2. Parameters: `wi` [D, F],
    `wi_gate` [D, F] if gated, `wo` [F, D], `predictor` if there is one; F is sharded over the mesh's model axis.

    Attributes:
      features: numbers per token that come out; by default as many as go in.
      residuals: branches that write to the residual stream, which W_o of init "gpt2" depends on.

    >>> import jax.numpy as jnp
    >>> from sparsity.ops.sparsifiers import TopK
    >>> mlp = SparseMLP(MLPConfig(d_ff=8, sparsifier=TopK(k=2)))
    >>> x = jnp.ones((1, 3, 4))
    >>> y, params = mlp.init_with_output(jax.random.key(0), x, Context())
    >>> y.shape
    (1, 3, 4)
    """

    config: MLPConfig
    dtype: str = "float32"
    features: int | None = None
    residuals: int = 1

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        cfg, d_model = self.config, x_BxLxD.shape[-1]
        x_BxLxD = Noise(cfg.noise, name="noise")(x_BxLxD, ctx)
        if cfg.inference is not None and cfg.inference.lays_out:
            return self._infer(cfg.inference, x_BxLxD, ctx)

        reads, writes = _initializers(cfg, d_model, self.residuals)

        def into(name, use_bias, scale=1.0):
            inits = reads | {"kernel_init": lambda *args: scale * reads["kernel_init"](*args)}
            return dense(cfg.d_ff, ("embed", "mlp"), use_bias=use_bias, dtype=self.dtype, name=name, **inits)

        z_BxLxF = into("wi", cfg.use_bias and not cfg.shared_bias, cfg.scale)(x_BxLxD)
        if cfg.shared_bias:
            z_BxLxF = z_BxLxF + self.param("shared_bias", named(nn.initializers.zeros), ()).astype(z_BxLxF.dtype)
        z_BxLxF = axes.constrain(z_BxLxF, ("batch", "length", "mlp"))
        factor_BxLxF = None
        if cfg.gate is not None:
            factor_BxLxF = cfg.gate.at(ctx.step)(into("wi_gate", cfg.use_bias)(x_BxLxD))
        a_BxLxF = h_BxLxF = Sparsify(cfg.sparsifier, name="sparsify")(z_BxLxF, ctx, factor_BxLxF)
        if cfg.predictor and (ctx.train or self.is_initializing()):
            bias_F = flax.core.meta.unbox(self.variables["params"]["wi"]).get("bias", 0.0)
            Predictor(cfg.predictor, name=PREDICTOR)(x_BxLxD, a_BxLxF, bias_F, ctx)
        if cfg.gated and cfg.gate is None:
            h_BxLxF = h_BxLxF * into("wi_gate", cfg.use_bias)(x_BxLxD)
        shared = (-2,) if cfg.shared_dropout else ()
        h_BxLxF = nn.Dropout(cfg.dropout, shared, deterministic=not ctx.train)(h_BxLxF)
        features = self.features or d_model
        out = dense(features, ("mlp", "embed"), use_bias=cfg.use_bias, dtype=self.dtype, name="wo", **writes)
        if ctx.tail == "kept":
            y_BxLxD = out(h_BxLxF)
        else:
            kinds = {LEAST: h_BxLxF, LEAST_ACTIVATION: a_BxLxF}
            given = [(self.get_variable(TAIL, kind), of) for kind, of in kinds.items() if self.has_variable(TAIL, kind)]
            if not given:
                raise ValueError(f"tail: no thresholds of {'/'.join(self.path)} among the variables")
            (least_F, compared_BxLxF), *_ = given
            y_BxLxD, stats = without_tail(h_BxLxF, least_F, out, ctx, compared_BxLxF)
            self.sow(STATS, TAIL, stats, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return axes.constrain(y_BxLxD, ("batch", "length", "embed"))

    def _infer(self, mode: Inference, x_BxLxD: jax.Array, ctx: Context) -> jax.Array:
        """The output by `mode`; recording hands out its `Diagnosis`, as "inference" among the statistics."""
        if ctx.train or ctx.hand_out or ctx.tail != "kept":
            raise ValueError(f"inference: {type(mode).__name__} neither trains nor hands out activations or their tail")
        if not self.has_variable("params", "wo"):
            raise ValueError(
                "inference: its weights are not initialised; decode.weights.prepared lays out trained ones"
            )
        weights, x_TxD = self.variables["params"], x_BxLxD.reshape(-1, x_BxLxD.shape[-1]).astype(self.dtype)
        compute = mode.together if len(x_TxD) > TOKENS else mode
        y_TxD = compute(weights, x_TxD, self.config, self.dtype)
        if ctx.record:
            found = mode.diagnose(weights, x_TxD, self.config, self.dtype)
            self.sow(STATS, "inference", found, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return y_TxD.reshape(*x_BxLxD.shape[:-1], -1)


def _initializers(
    cfg: MLPConfig, d_model: int, residuals: int
) -> tuple[dict[str, Initializer], dict[str, Initializer]]:
    """Of kernel and bias, for the matrices that read x and for the one that writes y; those missing are `dense`'s."""
    reads, writes = {"kernel_init": nn.initializers.xavier_uniform()}, {}
    if cfg.init == "torch":
        uniform = initializers.fan_in_uniform
        reads = {"kernel_init": uniform(d_model), "bias_init": uniform(d_model)}
        writes = {"kernel_init": uniform(cfg.d_ff), "bias_init": uniform(cfg.d_ff)}
    if cfg.init == "gpt2":
        reads = {"kernel_init": initializers.gpt2_weights()}
        writes = {"kernel_init": initializers.gpt2_weights(residuals)}
    if cfg.init == "t5":
        reads = writes = {"kernel_init": initializers.t5_weights()}
    if cfg.init == "edge_of_chaos":
        reads = {"kernel_init": initializers.input_weights()}
        writes = {"kernel_init": initializers.edge_weights(cfg.edge), "bias_init": initializers.edge_biases(cfg.edge)}
    return reads, writes


@dataclasses.dataclass(frozen=True)
class MLPFlops:
    """FLOPs per token of one MLP; one multiply-add counts as 2 (Li et al. 2022, Sec. 4.1)."""

    first: float
    second: float
    second_sparse: float


def mlp_flops(config: MLPConfig, d_model: int, density: float) -> MLPFlops:
    """FLOPs per token, dense and with the zeros of h skipped in the second matrix.

    With a share `density` of nonzeros, k = density * d_ff rows of W_o are needed, so the
    second layer costs 2 k d_model: it saves 1 - density, whatever comes out unchanged.

    Raises:
      ValueError: `density` outside [0, 1] (NaN included: a NaN activation is not sparse).
    """
    one = 2.0 * d_model * config.d_ff
    return MLPFlops(first=one * (2 if config.gated else 1), second=one, second_sparse=one * check_density(density))


def check_density(density: float) -> float:
    """`density`, if it is a share. Raises ValueError outside [0, 1], NaN included."""
    if not 0 <= density <= 1:
        raise ValueError(f"density: must be in [0, 1], got {density}")
    return density


def kept_flops(skippable: dict[str, float], density: dict[str, float] | None) -> float:
    """The sum of `skippable`, each times its layer's density. Raises ValueError outside [0, 1]."""
    if density is None:
        return sum(skippable.values())
    return sum(flops * check_density(density[name]) for name, flops in skippable.items())
