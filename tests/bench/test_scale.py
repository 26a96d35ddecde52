"""What the suite counts, on the devices at hand, and what was recorded of pods."""

import json
from pathlib import Path

import jax
import pytest

from sparsity.bench import protocol, scale
from sparsity.config import ConfigError
from sparsity.run import Machine, plan_step

RESULTS = Path(scale.__file__).parent / "results" / "scale.json"


@pytest.fixture(scope="module")
def whole_model():
    return scale.counted(plan_step(scale.scaled(1, 8, smoke=True), Machine.of("local")))


def test_a_case_has_facts_and_no_arms(whole_model):
    record = protocol.measure(whole_model)
    assert (record["bars"], record["steady"]) == ([], True)
    assert record["facts"]["devices"] == len(jax.devices()) == 8
    json.dumps(record)
    head, _, row = protocol.table([record]).splitlines()
    assert "| peak | fits | exchanged | sent | exchanges |" in head
    assert row.startswith("| 8 x cpu, data 8 | t5_base_c4_top_64 | 8 | ")


def test_copies_of_a_network_exchange_its_gradients(whole_model):
    """That of the one embedding [384, 32] three times, of inputs, targets and logits: XLA adds them afterwards.

    And little else: sums of losses, of a norm; and nothing is gathered.
    """
    facts, embedding = whole_model.facts, 4 * 384 * 32
    assert facts["by kind"]["all-reduce"] == pytest.approx(facts["parameters"] + 2 * embedding, rel=0.08)
    assert facts["exchanged"] == sum(facts["by kind"].values())
    assert facts["sent"] == pytest.approx(2 * 7 / 8 * facts["by kind"]["all-reduce"], rel=0.05)


def test_each_device_has_as_many_rows_whatever_their_number():
    for devices in (8, 256):
        config = scale.scaled(4, devices, smoke=False)
        assert (config.batch, config.mesh.model) == (8 * devices, 4)


def test_without_libtpu_the_suite_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^--suite=scale: libtpu is not installed.*\[tpu\]"):
        next(iter(scale.scale_cases(smoke=False)))
