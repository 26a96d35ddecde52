import dataclasses
import json

import numpy as np
import pytest

from sparsity.bench.measurement import LATENCY, arm_name, latency_config, measure_latency
from sparsity.config import ConfigError
from sparsity.layers.inference import Dense, GatherOut
from sparsity.ops.sparsifiers import TopK
from sparsity.run import Workdir, WorkdirError

SECTION = {
    "name": "latency_toy",
    "size": "base",
    "ks": (4,),
    "exact_ks": (8,),
    "inputs": 6,
    "tokens": (1, 2),
    "rounds": 3,
    "smoke": True,
}


@pytest.mark.filterwarnings("ignore:approx top-k.* is an exact search")
def test_a_measurement_is_done_once_and_says_what_it_timed(tmp_path):
    config = latency_config(SECTION)
    outcome = measure_latency(config, tmp_path)
    record = outcome.arrays[LATENCY]
    arms = ["k4, recall 0.95", "k8, exact"]
    assert [bar["arm"] for bar in record["bars"]] == arms
    assert {len(s) for s in record["seconds"].values()} == {3}
    assert record["facts"]["partial_reduce"] == dict.fromkeys(arms, False)
    assert (record["facts"]["layers"], record["facts"]["of"]) == (2, 2)
    found = {m.name: m.value for m in outcome.measures}
    seconds = {name: np.array(s) for name, s in record["seconds"].items()}
    assert found["ms.dense"] == pytest.approx(1e3 * np.median(seconds["dense"]))
    for arm in arms:
        assert found[f"reduction.{arm}"] == pytest.approx(1 - np.median(seconds[arm] / seconds["dense"]))
    json.dumps(record)
    assert record["machine"]["versions"]
    again = measure_latency(config, tmp_path)
    assert again.resumed
    assert again.measures == outcome.measures
    with pytest.raises(WorkdirError, match="made with another config"):
        measure_latency(dataclasses.replace(config, rounds=4), tmp_path)
    (tmp_path / "outcome.json").unlink()
    with Workdir(tmp_path).claim(), pytest.raises(WorkdirError, match="is being run by"):
        measure_latency(config, tmp_path)


def test_arms_are_dense_every_k_by_every_recall_and_the_exact_ones():
    ways = latency_config(SECTION | {"ks": (4, 8), "recalls": (0.9, 0.95)}).ways(64)
    assert list(ways) == ["dense", *(arm_name(k, r) for r in (0.9, 0.95) for k in (4, 8)), arm_name(8, None)]
    assert ways["dense"].mode == Dense()
    assert ways["k8, recall 0.9"].sparsifier == TopK(8, method="approx", recall_target=0.9)
    assert ways["k8, exact"].sparsifier == TopK(8)
    assert ways["k8, exact"].mode == GatherOut()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": (8, 8)}, "tokens: the longer arm must say more than the shorter"),
        ({"ks": ()}, "ks: numbers of units from 1 on are needed"),
        ({"exact_ks": (0,)}, "ks: numbers of units from 1 on are needed"),
        ({"recalls": (1.5,)}, r"recalls: must be in \(0, 1\]"),
        ({"ks": (70,)}, "ks: T5 base has no more than 64 units"),
        ({"name": "a/b"}, "name: letters, digits"),
        ({"rounds": 0}, "rounds: must be at least 1, got 0"),
        ({"size": "3B"}, 'size: unknown choice "3B"; valid: 11b, 3b'),
        ({"recal": (0.9,)}, 'recal: unknown key; did you mean "recalls"'),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message):
    with pytest.raises(ConfigError, match=rf"^config\.{message}"):
        latency_config(SECTION | settings)
