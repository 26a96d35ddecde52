"""`Predictor`: learns beside an MLP, from what its first matrix reads, which of its units will not be zero."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsity.layers.dense import named
from sparsity.layers.sparsify import Context, mean_over_tokens

PREDICTED = "predicted"  # the collection that its loss [B] is sown into


class Predictor(nn.Module):
    """Scores s = x P Q + b [F] of rank r, which are to be largest where h is not zero; b is W_i's bias, if it has one.

    Its loss on a token is that of a softmax over units which is to be uniform on those that are not zero, S:
    -1/|S| sum_{i in S} log softmax(s)_i, less its least value log |S|; 0 where S is empty. It knows the order of s
    alone, which is all that `layers.inference.LowRank` reads of it. No gradient reaches x, b or h: the network trains
    as without it, but where the norm of all gradients together is clipped. Predictors of this rank, trained with their
    network, are Jaszczur et al. 2021's controller and You et al. 2025's; this loss is ours. Parameters: `read` P
    [D, r], `write` Q [r, F], F sharded over the mesh's model axis.

    Attributes:
      rank: r.
    """

    rank: int

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, h_BxLxF: jax.Array, bias_F: jax.Array | float, ctx: Context) -> None:
        """Sows the loss of each example [B], mean over its tokens; initialisation sows nothing."""
        normal = lambda fan_in: nn.initializers.normal(fan_in**-0.5)
        sizes = x_BxLxD.shape[-1], h_BxLxF.shape[-1]
        read_DxR = self.param("read", named(normal(sizes[0]), "embed", "rank"), (sizes[0], self.rank))
        write_RxF = self.param("write", named(normal(self.rank), "rank", "mlp"), (self.rank, sizes[1]))
        if self.is_initializing():
            return
        given = jax.lax.stop_gradient((x_BxLxD.astype(jnp.float32), h_BxLxF, bias_F))
        x_BxLxD, h_BxLxF, bias_F = given
        score_BxLxF = x_BxLxD @ read_DxR @ write_RxF + bias_F
        kept_BxLxF = h_BxLxF != 0
        count_BxL = jnp.maximum(kept_BxLxF.sum(-1), 1)
        nats_BxLxF = jnp.where(kept_BxLxF, jax.nn.log_softmax(score_BxLxF), 0)
        loss_BxL = -nats_BxLxF.sum(-1) / count_BxL - jnp.log(count_BxL)
        loss_BxL = jnp.where(kept_BxLxF.any(-1), loss_BxL, 0)
        loss_B = mean_over_tokens(loss_BxL, ctx.weight_BxL)
        self.sow(PREDICTED, "loss", loss_B, reduce_fn=lambda _, new: new, init_fn=lambda: None)
