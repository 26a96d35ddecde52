"""The quickstart study: ReLU against Top-k on digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsity.run import Outcome
from sparsity.studies.runner import Record, Study
from sparsity.writer import read_metrics


def findings(records: Sequence[Record]) -> list[str]:
    """What the runs show, in sentences; every figure is computed."""
    out = []
    for record in records:
        name = record.config.name
        if record.outcome.status == "diverged":
            out.append(f"{name}: diverged at step {record.outcome.step}.")
            continue
        value = _values(record.outcome)
        line = f"{name}: test accuracy {100 * value['accuracy']:.1f}%"
        rows = [r for r in read_metrics(record.files.metrics) if r["kind"] == "sparsity"]
        if rows:
            first, last = (100 * np.mean([v["nonzero"] for v in rows[i]["layers"].values()]) for i in (0, -1))
            line += f", mean nonzero share on training batches {first:.1f}% at step 0, {last:.1f}% at the end"
        out.append(line + ".")
    done = [r for r in records if r.outcome.status == "finished"]
    if len(done) == 2:
        (a, b), names = (_values(r.outcome) for r in done), [r.config.name for r in done]
        shown = {"accuracy": "accuracy", "robustness.mean": "accuracy under noise", "ece": "ECE"}
        gaps = [f"{text} {100 * (b[key] - a[key]):+.1f} points" for key, text in shown.items() if key in a and key in b]
        out.append(
            f"{names[1]} against {names[0]}, one seed each, so these differences carry no error bar over training: "
            f"{', '.join(gaps)}."
        )
        if "steps_per_second" in a and "steps_per_second" in b:
            rates = " and ".join(f"{v['steps_per_second']:.1f}" for v in (a, b))
            out.append(
                f"Speed: {rates} steps/s, one run after the other, so their ratio means little; "
                "launch.benchmark --suite=top_k measures it side by side."
            )
    return out


def _values(outcome: Outcome) -> dict[str, float]:
    return {m.name: m.value for m in outcome.measures}


QUICKSTART = Study(
    name="quickstart",
    title="Quickstart: sparse activations in a small ViT",
    introduction=(
        "Two small Vision Transformers read handwritten digits (scikit-learn's 1,797 images of 8x8 pixels). They "
        "differ in one line of their config: the hidden activations of every MLP are max(z, 0) in the first, and "
        "only the k largest of these per token in the second. Seeds and the order of data are the same. In the "
        "first, training alone makes activations sparse, as Li et al. (2022) found for T5 and ViT; in the second, "
        "they are sparse by construction."
    ),
    findings=findings,
)
