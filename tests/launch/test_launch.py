"""The launchers as a user meets them: processes, exit codes, one-line errors."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli

ROOT = Path(__file__).parents[2]
TINY = [
    "--config=configs/quickstart.py:top_k",
    "--config.steps=4",
    "--config.batch=32",
    "--config.model.d_model=16",
    "--config.model.layers=1",
    "--config.model.mlp.d_ff=32",
    "--config.model.mlp.sparsifier.k=4",
    "--config.every.checkpoint=2",
    "--config.evals.names=('accuracy','sparsity','cost')",
]


@pytest.fixture(scope="module")
def trained(launch_alone, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("launch") / "one"
    return workdir, launch_alone("train", *TINY, f"--workdir={workdir}")


def test_train_leaves_a_workdir_and_prints_its_table(trained):
    workdir, (code, out, err) = trained
    assert code == cli.DONE, err
    assert "accuracy" in out
    assert "nonzero.block_0" in out
    assert {p.name for p in workdir.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "outcome.json",
        "report",
    }
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["model"]["mlp"]["sparsifier"] == {
        "name": "top_k",
        "k": 4,
        "act": "relu",
        "method": "exact",
        "steps": 5,
        "recall_target": 0.95,
    }
    assert "vit_digits_top_64  step 4/4" in err  # plain progress lines where there is no terminal
    page = (workdir / "report" / "index.html").read_text()
    assert page.count("<svg") == 3  # without the evaluators of two figures
    assert not {"Firing rates", "Calibration"} & set(re.findall(r"<h2>(.*?)</h2>", page))
    assert "UserWarning" not in err
    assert "://" not in page  # self-contained: nothing is fetched
    command = re.search(r">(python -m launch[.]train --config=configs/quickstart[.]py:top_k [^<]*)<", page)[1]
    assert command.endswith(" --workdir=W")


def test_train_again_says_finished_and_writes_nothing(launch, trained):
    workdir, _ = trained
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    code, out, _ = launch("train", *TINY, f"--workdir={workdir}")
    assert code == cli.DONE
    assert "finished already (4 steps); nothing to do" in out
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_a_report_lost_to_a_kill_is_written_by_the_next_call(launch, trained):
    workdir, _ = trained
    page = (workdir / "report" / "index.html").read_bytes()
    (workdir / "report" / "index.html").unlink()
    code, _, _ = launch("train", *TINY, f"--workdir={workdir}")
    assert code == cli.DONE
    assert (workdir / "report" / "index.html").read_bytes() == page


def test_report_writes_the_page_of_runs_from_their_files(launch, trained, tmp_path):
    workdir, _ = trained
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    page = tmp_path / "page.html"
    code, out, err = launch("report", f"--workdir={workdir}", f"--out={page}")
    assert code == cli.DONE, err
    assert out == f"report: {page}\n"
    named = lambda text: re.findall(r'<a class="term".*?>(.*?)<', text)
    assert named(page.read_text()) == named((workdir / "report" / "index.html").read_text())
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before
    code, _, err = launch("report", f"--workdir={workdir},{tmp_path}", f"--out={page}")
    assert (code, err.count("\n")) == (cli.BAD_INPUT, 1)
    assert f"workdir {tmp_path}: holds no run" in err


def test_a_call_is_said_with_a_workdir_of_the_readers_own(monkeypatch):
    called = ["/somewhere/launch/train.py", "--workdir", "/home/me/w", "--config=a b.py", "-workdir=x"]
    monkeypatch.setattr(sys, "argv", called)
    assert cli.command() == "python -m launch.train --workdir=W '--config=a b.py' --workdir=W"


def test_evaluate_prints_the_recorded_numbers_bit_for_bit(launch, trained, tmp_path):
    workdir, _ = trained
    code, out, err = launch("evaluate", f"--workdir={workdir}", f"--out={tmp_path / 'e.json'}")
    assert code == cli.DONE, err
    assert "equal, bit for bit, to the evaluation recorded at the end of training" in out
    recorded = {m["name"]: m for m in json.loads((workdir / "outcome.json").read_text())["measures"]}
    for measure in json.loads((tmp_path / "e.json").read_text())["measures"]:
        assert measure == recorded[measure["name"]]


def test_evaluate_takes_other_settings_of_the_evaluation_and_says_so(launch, trained, tmp_path):
    workdir, _ = trained
    before = (workdir / "config.json").read_bytes()
    options = ("--evals=accuracy", "--set=split=validation", "--set=batch=16", f"--out={tmp_path / 'e.json'}")
    code, out, err = launch("evaluate", f"--workdir={workdir}", *options)
    assert code == cli.DONE, err
    assert "checkpoint of step 4 of 4; with split=validation, batch=16" in out
    measures = json.loads((tmp_path / "e.json").read_text())["measures"]
    assert all("validation examples" in m["definition"] for m in measures)
    assert (workdir / "config.json").read_bytes() == before


def test_evaluate_compares_runs_side_by_side_and_pairs_them(launch, trained, tmp_path):
    workdir, _ = trained
    shutil.copytree(workdir, tmp_path / "earlier")
    shutil.rmtree(tmp_path / "earlier" / "checkpoints" / "4")
    (tmp_path / "earlier" / "outcome.json").unlink()
    code, out, err = launch("evaluate", f"--workdir={workdir},{tmp_path / 'earlier'}", f"--out={tmp_path / 'e.tex'}")
    assert code == cli.DONE, err
    lines = [re.split("  +", line) for line in out.splitlines()]
    assert lines[0] == ["measure", str(workdir), str(tmp_path / "earlier")]
    assert lines[1] == ["status", "finished", "unfinished(2)"]
    less = lines.index([f"less {workdir}", str(tmp_path / "earlier")])
    assert [line[0] for line in lines[less + 1 : less + 3]] == ["accuracy", "nll"]
    assert all(re.fullmatch(r"[+-][\d.]+ ± [\d.]+ (points|nats)", line[1]) for line in lines[less + 1 : less + 3])
    assert ["n", "358"] in lines
    assert f"{workdir}: checkpoint of step 4 of 4; equal, bit for bit" in out
    assert (tmp_path / "e.tex").read_text().count(r"\begin{tabular}") == 2
    code, out, err = launch("evaluate", f"--workdir={workdir}", "--steps=all", "--evals=accuracy")
    assert code == cli.DONE, err
    assert [line.split()[0] for line in out.splitlines()] == ["step", "2", "4"]


def test_evaluate_follows_a_run_until_it_is_told_to_stop(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "w")
    (tmp_path / "w" / "outcome.json").unlink()
    flags = [f"--workdir={tmp_path / 'w'}", "--evals=accuracy", f"--out={tmp_path / 'f.csv'}"]
    command = [sys.executable, "-m", "launch.evaluate", *flags, "--follow", "--poll=0.1"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE) as process:
        try:
            lines = [process.stdout.readline().split()[0] for _ in range(3)]
            process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a command behind `&` ignores
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert lines == ["step", "2", "4"]
    assert rest == "vit_digits_top_64: followed no more, after 2 checkpoints\n"
    assert process.returncode == cli.DONE
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 1 + 2 * 2


def test_a_users_mistake_is_one_line_and_exit_code_2(launch, trained, tmp_path):
    workdir, _ = trained
    (tmp_path / "empty.py").write_text('"""No run."""\n')
    (tmp_path / "file").write_text("")
    quick, new = "--config=configs/quickstart.py:top_k", f"--workdir={tmp_path / 'new'}"
    cases = [
        ("train", [new], "--config: required"),
        ("train", [quick], "--workdir: required"),
        ("train", ["--config=configs/quikstart.py", new], 'did you mean "configs/quickstart.py"?'),
        ("train", [f"--config={tmp_path / 'empty.py'}", new], "the file defines no get_config()"),
        ("train", ["--config=configs/quickstart.py:topk", new], 'unknown run "topk"'),
        ("train", [quick, "--config.model.mlp.spasifier.k=3", new], "error: 'spasifier' Did you mean \"sparsifier\""),
        ("train", [quick, "--config.model.mlp.droput=0.1", new], 'mlp.droput: unknown key; did you mean "dropout"?'),
        ("train", [quick, "--config.model.mlp.sparsifier.kk=3", new], "sparsifier.kk: unknown key"),
        ("train", [quick, "--config.model.mlp.sparsifier.k=9999", new], "9999 is more than the d_ff 512"),
        ("train", [quick, "--config.steps=ten", new], "steps"),
        ("train", [quick, f"--workdir={tmp_path / 'file' / 'w'}"], "cannot be written"),
        ("train", [quick, f"--workdir={workdir}"], "made with another config"),
        ("train", [quick, new, "--processes=2", "--process=0"], "error: --coordinator: missing"),
        ("train", [quick, new, "--heartbeat=0"], "--heartbeat: must be at least 1, got 0"),
        ("train", [quick, "--topology=v5e:8x8", new], "--topology: it is of --dry_run"),
        ("train", [quick, "--topology=v5:8x8", "--dry_run", new], 'unknown "v5:8x8"; valid: local, v4:XxYxZ'),
        ("evaluate", [f"--workdir={tmp_path / 'new'}"], "holds no run"),
        ("evaluate", [f"--workdir={workdir}", "--evals=acuracy"], 'did you mean "accuracy"?'),
        ("evaluate", [f"--workdir={workdir}", "--set=spilt=test"], 'evals.spilt: unknown key; did you mean "split"?'),
        ("evaluate", [f"--workdir={workdir}", "--set=batch"], "--set: 'batch' is not key=value"),
        ("evaluate", [f"--workdir={workdir}", "--evals=generate"], "generate scores language, the run's task is class"),
        ("evaluate", [f"--workdir={workdir}", "--steps=last"], "--steps: expected all, or steps such as 100,200"),
        ("evaluate", [f"--workdir={workdir}", "--out=table.txt"], "table.txt ends in none of .json, .csv, .md, .tex"),
        ("evaluate", [f"--workdir={workdir}", "--steps=all", "--follow"], "--follow: follows all checkpoints of one"),
        ("reproduce", ["--study=quikstart", new], 'did you mean "quickstart"?'),
        ("reproduce", ["--study=quickstart", "--scale=paper", new], 'no scale "paper"'),
        ("reproduce", ["quickstart", "--study=quickstart", new], "unexpected argument 'quickstart'"),
    ]
    for module, args, message in cases:
        code, out, err = launch(module, *args)
        assert code == cli.BAD_INPUT, (module, args, out, err)
        assert message in err, (module, args, err)
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
    assert not (tmp_path / "new").exists()


def test_a_workdir_that_is_damaged_is_one_line(launch, trained, tmp_path):
    """Each file is cut in half, or is something else; the mend is named where there is one."""
    whole, _ = trained
    train, evaluate = ("train", [*TINY]), ("evaluate", ["--evals=accuracy"])
    cases = [
        ("config.json", None, (train, evaluate), "is no JSON ("),
        ("config.json", "[3]", (train, evaluate), "is no config, but list; use another workdir"),
        ("config.json", '{"name": ["x"]}', (evaluate,), "its config.json is refused: config.name: expected str"),
        ("outcome.json", None, (train, evaluate), "delete it, and the run is evaluated anew from its last checkpoint"),
        ("outcome.json", '{"step": "4"}', (train, evaluate), "the step of its outcome is of type str; delete it, and"),
        ("metrics.jsonl", None, (train,), "has no record of the run's last step, 3: it was cut short; delete"),
    ]
    for i, (name, text, commands, message) in enumerate(cases):
        workdir = tmp_path / str(i)
        shutil.copytree(whole, workdir)
        shutil.rmtree(workdir / "report")  # it is written again, of the records
        file = workdir / name
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if text is None else text.encode())
        for module, args in commands:
            code, _, err = launch(module, *args, f"--workdir={workdir}")
            assert (code, err.count("\n")) == (cli.BAD_INPUT, 1), (name, module, err)
            assert err.startswith("error: ")
            assert str(workdir) in err
            assert message in err


def test_a_dry_run_prints_the_run_and_does_nothing(launch, tmp_path):
    code, out, err = launch("train", *TINY, f"--workdir={tmp_path / 'w'}", "--dry_run")
    assert code == cli.DONE, err
    header, row, *planned, where = out.splitlines()
    assert header.split() == ["run", "parameters", "training", "FLOPs", "state", "status"]
    assert row.split()[0] == "vit_digits_top_64"
    assert row.endswith("to do")
    assert planned[0] == "a training step of vit_digits_top_64; nothing has been run"
    assert planned[2].split() == ["parameters", row.split()[1]]
    assert planned[-2:] == ["exchanged       nothing", planned[-1]]  # one device
    assert planned[-1].startswith("not compiled: --topology=local compiles for these devices")
    assert re.fullmatch(
        rf"directory: {tmp_path}/w; as a run of a study: W/runs/vit_digits_top_64-[0-9a-f]{{10}}", where
    )
    assert not any(tmp_path.iterdir())


def test_a_dry_run_knows_what_is_done_and_refuses_what_the_run_would(launch, trained):
    workdir, _ = trained
    (code, out, err), other = (
        launch("train", *TINY, *more, f"--workdir={workdir}", "--dry_run") for more in ([], ["--config.seed=1"])
    )
    assert code == cli.DONE, err
    assert out.splitlines()[1].endswith("finished")
    assert other[0] == cli.BAD_INPUT
    assert "made with another config (seed: 0 there, 1 asked for)" in other[2]


def test_a_smoke_run_is_short_and_says_what_it_is(launch, tmp_path):
    workdir = tmp_path / "w"
    # Of data that need not be there.
    code, out, err = launch("train", *TINY, "--config.data.name=mnist", "--smoke", f"--workdir={workdir}")
    assert code == cli.DONE, err
    assert out.startswith("vit_digits_top_64_smoke: 2 steps on noise")
    assert "step 2/2" in err
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["data"] == {"name": "mock", "image_shape": [28, 28, 1], "classes": 10}
    assert (saved["name"], saved["steps"]) == ("vit_digits_top_64_smoke", 2)
    assert (workdir / "report" / "index.html").exists()


def test_data_that_are_not_there_are_one_line_and_not_fetched(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    code, _, err = launch("train", *TINY, "--config.data.name=mnist", f"--workdir={tmp_path / 'w'}")
    assert code == cli.BAD_INPUT
    assert err.startswith(f"error: data: no mnist:3.*.* in {tmp_path / 'data'}/mnist/3.0.1 (TFDS_DATA_DIR")
    assert err.count("\n") == 1, err
    assert not (tmp_path / "data").exists()
    # A save beside the import of TFDS fails now and then: there is none.
    assert list((tmp_path / "w" / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_keys_left_at_their_defaults_and_other_choices_can_be_set_on_the_command_line(launch, tmp_path):
    sparsifier = "--config.model.mlp.sparsifier"
    cases = [
        ([f"{sparsifier}.recall_target=0.9"], {"recall_target": 0.9, "k": 4}),
        ([f"{sparsifier}.name=shifted_relu", f"{sparsifier}.tau=0.5"], {"name": "shifted_relu", "tau": 0.5}),
        ([f"{sparsifier}.name=relu"], {"name": "relu"}),
        (["--config.optimizer.rule.name=sgd", "--config.optimizer.rule.momentum=0.9"], {"k": 4}),
    ]
    for i, (args, expected) in enumerate(cases):
        given = [a for a in TINY if not (a.startswith(f"{sparsifier}.k") and "name" in expected)]
        code, _, err = launch("train", *given, "--config.steps=1", *args, f"--workdir={tmp_path / str(i)}")
        assert code == cli.DONE, err
        saved = json.loads((tmp_path / str(i) / "config.json").read_text())["model"]["mlp"]["sparsifier"]
        assert saved.items() >= expected.items()


@pytest.mark.slow
def test_evaluate_says_what_the_run_came_to(launch, tmp_path):
    args = [*TINY, "--config.optimizer.learning_rate=1e30", "--config.optimizer.schedule.warmup=0"]
    launch("train", *args, f"--workdir={tmp_path / 'w'}")
    code, out, err = launch("evaluate", f"--workdir={tmp_path / 'w'}")
    assert code == cli.DONE, err
    assert "diverged(" in out
    assert "finished" not in out
    code, _, err = launch("evaluate", f"--workdir={tmp_path / 'w'}", f"--out={tmp_path / 'no' / 'e.json'}")
    assert (code, err.count("\n")) == (cli.BAD_INPUT, 1)


def test_divergence_has_its_exit_code(launch, tmp_path):
    args = [*TINY, "--config.optimizer.learning_rate=1e30", "--config.optimizer.schedule.warmup=0"]
    code, out, _ = launch("train", *args, f"--workdir={tmp_path / 'w'}")
    assert code == cli.DIVERGED
    assert "diverged at step" in out


def test_help_explains_flags_and_exit_codes(launch_alone):
    for module in ("train", "evaluate", "reproduce"):
        code, out, _ = launch_alone(module, "--help")
        assert code == cli.DONE
        assert "--workdir" in out
        assert "exit codes: 0 done" in out
