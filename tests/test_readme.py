"""The README's commands and pointers are real."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_two_setup_commands_stand_there_and_ci_runs_the_second():
    setup = "python -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e "
    commands = [line for line in README.splitlines() if line.startswith(setup)]
    assert len(commands) == 2
    assert commands[0].endswith("python -m launch.reproduce --study=quickstart --workdir=runs/quickstart")
    assert commands[1].endswith("python -m pytest -n 2 --dist loadfile")
    pattern = re.search(r"sed -n '(s/.*)' README.md", (ROOT / ".ci/run").read_text())[1]
    found = subprocess.run(["sed", "-n", pattern, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == commands[1].split("activate && ")[1]


def test_every_path_it_names_exists():
    named = set(re.findall(r"`((?:sparsity|configs|launch|tests|colabs)/[\w./]*)`", README))
    assert len(named) > 10
    assert [p for p in named if not (ROOT / p).exists()] == []


def test_every_file_of_the_package_has_its_place_in_a_test():
    """Tests mirror the package: a module without one is named here with its reason."""
    elsewhere = {
        "sparsity/bench/top_k.py": "tests/bench/test_protocol.py",
        "sparsity/ops/kernels/top_k_tpu.py": "tests/ops/test_top_k.py",
        "sparsity/ops/sparsifiers/base.py": "tests/ops/sparsifiers/test_table.py",
        "sparsity/ops/sparsifiers/dense_references.py": "tests/ops/sparsifiers/test_table.py",
        "sparsity/ops/top_k_threshold.py": "tests/ops/test_top_k.py",
        "sparsity/convert/described.py": "tests/convert/test_hostile.py",
        "sparsity/convert/hf.py": "tests/convert/test_hf_vit.py",
        "sparsity/convert/vit.py": "tests/convert/test_timm.py",
        "sparsity/data/arrays.py": "tests/convert/test_hostile.py",
        "sparsity/data/next_tokens.py": "tests/data/test_vocabularies.py",
        "sparsity/models/decoder.py": "tests/decode/test_generate.py",
        **{
            f"sparsity/layers/inference/{name}.py": "tests/layers/inference/test_modes.py"
            for name in ("base", "gather", "threshold", "whole")
        },
        "sparsity/layers/scan.py": "tests/models/test_t5.py",
        "sparsity/layers/dense.py": "tests/test_spmd.py",
        "sparsity/layers/norms.py": "tests/test_spmd.py",
        "sparsity/recipes/bricken2023.py": "tests/test_recipes.py",
        "sparsity/recipes/li2022.py": "tests/test_recipes.py",
        "sparsity/recipes/checkpoints.py": "tests/launch/test_convert.py",
        "sparsity/recipes/llama.py": "tests/models/test_llama.py",
        "sparsity/recipes/li2022_paper_scale.py": "tests/test_recipes.py",
        "sparsity/recipes/price2024.py": "tests/test_recipes.py",
        "sparsity/studies/quickstart.py": "tests/studies/test_runner.py",
    }
    for path in sorted((ROOT / "sparsity").rglob("*.py")):
        if path.name == "__init__.py":
            continue
        relative = path.relative_to(ROOT)
        mirror = ROOT / "tests" / relative.parent.relative_to("sparsity") / f"test_{path.name}"
        assert mirror.exists() or (ROOT / elsewhere[str(relative)]).exists(), f"{relative} has no test"
