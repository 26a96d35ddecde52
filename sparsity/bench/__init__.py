"""The benchmark suites, by name: each yields its cases, small ones with `smoke`."""

from sparsity.bench.decode import decode_cases
from sparsity.bench.digests import digests_cases
from sparsity.bench.growth import growth_cases
from sparsity.bench.protocol import Suite
from sparsity.bench.saving import saving_cases
from sparsity.bench.scale import scale_cases
from sparsity.bench.seeds import seeds_cases
from sparsity.bench.t5 import t5_cases
from sparsity.bench.top_k import top_k_cases
from sparsity.bench.train import train_cases

SUITES: dict[str, Suite] = {
    "top_k": top_k_cases,
    "seeds": seeds_cases,
    "saving": saving_cases,
    "train": train_cases,
    "t5": t5_cases,
    "decode": decode_cases,
    "digests": digests_cases,
    "growth": growth_cases,
    "scale": scale_cases,
}
