"""How an MLP is computed when a token at a time is decoded: the modes of inference, by name.

| mode | first matrix W_i | second matrix W_o | sparsifiers |
|---|---|---|---|
| `dense` | all | all, in the fastest layout | all |
| `dense_mask` | all | all: the training path itself | all |
| `gather_out` | all | k rows | `top_k` |
| `low_rank` | a predictor of low rank, then the rows of its candidates | k rows | `top_k`, ranked one by one |
| `quantized_search` | a copy in 8 or 4 bits, then the rows of its candidates | k rows | `top_k`, ranked one by one |
| `threshold` | all | the rows of units that are not zero | those with zeros; others with thresholds found beforehand |

Of a gated MLP, the gate's matrix is read like the second one. Every mode computes what training does, but for the order
of summation; `low_rank`, `top_k` of method approx, thresholds found beforehand and a `quantized_search` that may not
fall back are approximations, and `Inference.diagnose` measures them. W must be finite: rows that are not read cannot
make an output NaN. In all modes more than `ops.sparse_matmul.TOKENS` tokens at once, as of a prompt, share whole
products, and nothing is searched for. `decode.weights.prepared` lays a checkpoint's weights out for a mode, once.
"""

from sparsity.layers.inference.base import Inference
from sparsity.layers.inference.gather import GatherOut
from sparsity.layers.inference.search import LowRank, QuantizedSearch
from sparsity.layers.inference.threshold import Threshold
from sparsity.layers.inference.whole import Dense, DenseMask

INFERENCE: dict[str, type[Inference]] = {
    "dense": Dense,
    "gather_out": GatherOut,
    "low_rank": LowRank,
    "quantized_search": QuantizedSearch,
    "threshold": Threshold,
    "dense_mask": DenseMask,
}
