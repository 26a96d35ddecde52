import errno
import io
import json
import math
import os
import struct
import sys
import types
from pathlib import Path

import pytest

from sparsity import writer
from sparsity.config import ConfigError
from sparsity.writer import (
    MetricsWriter,
    Progress,
    WriteError,
    check_sinks,
    damaged_lines,
    open_sinks,
    read_json,
    read_metrics,
    write_json,
    write_text,
)


def test_json_is_read_back_as_written_nan_and_infinity_included(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None], "nan": float("nan"), "inf": float("-inf")})
    back = read_json(tmp_path / "a.json")
    assert back["x"] == [1, 2.5, None]
    assert math.isnan(back["nan"])
    assert back["inf"] == float("-inf")


def test_floats_survive_json_bit_for_bit(tmp_path):
    values = [0.1, 1 / 3, 1e-308, 123456789.123456789, -0.0]
    write_json(tmp_path / "a.json", values)
    assert [v.hex() for v in read_json(tmp_path / "a.json")] == [v.hex() for v in values]


def test_writing_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "old, and longer")
    write_text(tmp_path / "a.txt", "new ±")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new ±"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_halfway_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.os, "fsync", fail)
    with pytest.raises(WriteError, match=r"a\.json: cannot be written \(No space left on device\)$"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_said_in_a_line_and_whole_records_stay(tmp_path, full_disk):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsWriter(path)
    for step in range(3):
        metrics.write("train", step)
    with full_disk(path.stat().st_size + 5):
        with pytest.raises(WriteError, match=r"metrics\.jsonl: cannot be written \(File too large\)$"):
            metrics.write("train", 3)
        metrics.close()  # what could not be written is not tried again
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
    MetricsWriter(path, start=2).close()
    assert [r["step"] for r in read_metrics(path)] == [0, 1]


def test_a_value_that_is_not_json_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}


def test_metrics_of_a_file_that_does_not_exist_are_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_each_record_is_one_line_on_disk_before_close(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsWriter(path)
    metrics.write("train", 0, loss=1.5)
    metrics.write("speed", 0, n=3)
    lines = path.read_text(encoding="utf-8").splitlines()
    metrics.close()
    assert [json.loads(line) for line in lines] == [
        {"kind": "train", "step": 0, "loss": 1.5},
        {"kind": "speed", "step": 0, "n": 3},
    ]


def test_opening_at_a_step_drops_the_records_from_it_on_and_appends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsWriter(path)
    for step in range(5):
        first.write("train", step, loss=float(step))
        first.write("sparsity", step)
    first.close()
    second = MetricsWriter(path, start=3)
    second.write("train", 3, loss=30.0)
    second.close()
    records = read_metrics(path)
    assert [(r["kind"], r["step"]) for r in records] == [
        *((kind, step) for step in range(3) for kind in ("train", "sparsity")),
        ("train", 3),
    ]
    assert records[-1]["loss"] == 30.0


def test_opening_at_step_0_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_text(path, '{"kind": "train", "step": 0}\n')
    MetricsWriter(path).close()
    assert path.read_text(encoding="utf-8") == ""


def test_a_last_line_cut_by_a_kill_is_dropped_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_text(path, '{"kind": "train", "step": 0}\n{"kind": "train", "st')
    assert read_metrics(path) == [{"kind": "train", "step": 0}]
    metrics = MetricsWriter(path, start=1)
    metrics.write("train", 1)
    metrics.close()
    assert [r["step"] for r in read_metrics(path)] == [0, 1]


def test_lines_that_are_no_records_are_left_out_and_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [f'{{"kind": "train", "step": {step}}}' for step in range(3)]
    bad = ["[]", "3", "null", '{"kind": "train"}', '{"kind": 3, "step": 1}', '{"kind": "train", "step": "1"}', "{"]
    bad += ['{"kind": "train", "step": true}', "[" * 5000, "9" * 5000]
    path.write_bytes("\n".join([good[0], *bad, good[1], "", good[2], '{"kin']).encode() + b"\xff")
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
    assert damaged_lines(path) == len(bad) + 1
    MetricsWriter(path, start=2).close()
    assert path.read_text() == f"{good[0]}\n{good[1]}\n"
    assert damaged_lines(path) == damaged_lines(tmp_path / "none") == 0


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, None])
def test_what_is_no_json_is_refused_by_the_name_of_its_file(tmp_path, text):
    path = tmp_path / "a.json"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"^{path}: (is no JSON|cannot be read) \("):
        read_json(path)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(writer.time, "monotonic", clock)
    return clock


def test_off_a_terminal_progress_is_one_line_per_interval_and_the_last_step(clock):
    stream = io.StringIO()
    progress = Progress(stream, seconds=10.0)
    progress.start("relu", 0, 8)
    progress.show(loss="0.5", grad_norm="1.0")
    for step in range(1, 9):
        clock.now += 4.0
        progress.update(step)
    progress.stop()
    # Steps end at 4, 8, 12, ... s: a line is due at 12 and 24 s, and the last step has its own.
    assert stream.getvalue().splitlines() == [
        "relu  step 3/8  loss 0.5  grad norm 1.0  0.2 steps/s  ETA 20 s",
        "relu  step 6/8  loss 0.5  grad norm 1.0  0.2 steps/s  ETA 8 s",
        "relu  step 8/8  loss 0.5  grad norm 1.0  0.2 steps/s  ETA 0 s",
    ]


def test_a_resumed_run_reports_the_speed_of_its_own_steps(clock):
    stream = io.StringIO()
    progress = Progress(stream, seconds=1.0)
    progress.start("relu", 100, 120)
    clock.now += 5.0
    progress.update(110)
    assert stream.getvalue() == "relu  step 110/120  2.0 steps/s  ETA 5 s\n"


def test_figures_of_one_run_do_not_show_in_the_next(clock):
    stream = io.StringIO()
    progress = Progress(stream, seconds=1.0)
    progress.start("relu", 0, 1)
    progress.show(loss="0.5")
    progress.stop()
    progress.start("top_k", 0, 1)
    clock.now += 1.0
    progress.update(1)
    assert stream.getvalue() == "top_k  step 1/1  1.0 steps/s  ETA 0 s\n"


def test_on_a_terminal_progress_is_a_bar_with_run_step_figures_and_speed_in_steps():
    stream = Terminal()
    progress = Progress(stream)
    progress.start("relu", 2, 8)
    progress.show(loss="0.512")
    progress.update(8)
    progress.stop()
    assert "relu" in stream.getvalue()
    assert "8/8" in stream.getvalue()
    assert "loss=0.512" in stream.getvalue()
    assert "steps/s" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["plain", "terminal"])
def test_a_message_stands_on_a_line_of_its_own(stream):
    progress = Progress(stream)
    progress.start("relu", 0, 8)
    progress.say("relu: diverged at step 3")
    progress.stop()
    assert "relu: diverged at step 3\n" in stream.getvalue()


class Seen:
    """A sink that keeps what it is told; at `breaks` it cannot."""

    def __init__(self, breaks=None):
        self.told, self.breaks, self.closed = [], breaks, False

    def write(self, step, values):
        if step == self.breaks:
            raise OSError("no room")
        self.told.append((step, values))

    def close(self):
        self.closed = True


def test_a_sink_is_told_every_number_once_also_those_before_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsWriter(path)
    for step in range(4):
        first.write("train", step, loss=float(step), note="text", kept=True, many=[1, 2])
    first.close()
    sink = Seen()
    second = MetricsWriter(path, start=2, sinks=[sink])
    second.write("sparsity", 2, layers={"block_0": {"nonzero": 0.5, "se": None}})
    assert not sink.closed
    second.close()
    assert sink.closed
    assert sink.told == [
        (0, {"train/loss": 0.0}),
        (1, {"train/loss": 1.0}),
        (2, {"sparsity/layers.block_0.nonzero": 0.5}),
    ]


def test_a_sink_that_breaks_is_named_and_left_out_and_the_record_goes_on(tmp_path):
    said, broken, whole = [], Seen(breaks=1), Seen()
    metrics = MetricsWriter(tmp_path / "metrics.jsonl", 0, [broken, whole], said.append)
    for step in range(4):
        metrics.write("train", step, loss=1.0)
    metrics.close()
    assert said == ["Seen: gets nothing more (no room); metrics.jsonl has all"]
    assert [[step for step, _ in sink.told] for sink in (broken, whole)] == [[0], [0, 1, 2, 3]]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def fake(monkeypatch, name, **functions):
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def resumed(path, sink):
    """Five steps, and the last two of them again, after a resume, with a sink of this name each time."""
    for start, stop in ((0, 5), (3, 5)):
        metrics = MetricsWriter(path / "metrics.jsonl", start, open_sinks([sink], path, "run", {"seed": 3}))
        for step in range(start, stop):
            metrics.write("train", step, loss=float(step))
        metrics.close()


def test_event_files_are_written_anew_by_each_opening(tmp_path, monkeypatch):
    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert purge_step == 0
            Path(folder).mkdir(exist_ok=True)
            self.file = Path(folder) / f"events.out.tfevents.{len(opened)}"
            opened.append(self.file)
            self.file.write_text("")

        def add_scalar(self, name, value, step):
            self.file.write_text(f"{self.file.read_text()}{name} {step} {value}\n")

        def close(self):
            pass

    opened = []
    fake(monkeypatch, "tensorboardX", SummaryWriter=SummaryWriter)
    resumed(tmp_path, "tensorboard")
    assert [file.exists() for file in opened] == [False, True]
    assert opened[1].read_text().splitlines() == [f"train/loss {step} {step:.1f}" for step in range(5)]


def test_a_run_at_weights_and_biases_is_the_same_one_when_it_is_resumed_and_gets_each_step_once(tmp_path, monkeypatch):
    begun, logged, ended = [], [], []

    class Run:
        def __init__(self, **settings):
            begun.append(settings)
            self.step = logged[-1][0] + 1 if logged else 0  # what it has got already

        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            ended.append(self)

    fake(monkeypatch, "wandb", init=Run)
    resumed(tmp_path, "wandb")
    assert begun[0] == begun[1]
    assert begun[0] == {
        "id": read_json(tmp_path / "wandb.json")["id"],
        "name": "run",
        "dir": str(tmp_path),
        "config": {"seed": 3},
        "resume": "allow",
    }
    assert logged == [(step, {"train/loss": float(step)}) for step in range(5)]
    assert len(ended) == 2


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_missing_is_named_with_its_extra(name, module, monkeypatch):
    message = rf"^--sinks={name}: {module} is not installed; pip install -e '\.\[{name}\]'$"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=message):
        check_sinks([name])
    fake(monkeypatch, module)  # what import makes of a directory of this name
    with pytest.raises(ConfigError, match=message):
        check_sinks([name])


def test_an_unknown_sink_and_one_that_does_not_open_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r'^unknown sink "tensorbord"; did you mean "tensorboard"\?$'):
        check_sinks(["tensorbord"])

    def init(**_):
        raise RuntimeError("no key:\n  log in")

    fake(monkeypatch, "wandb", init=init)
    with pytest.raises(ConfigError, match=r"^--sinks=wandb: no key: log in$"):
        open_sinks(["wandb"], tmp_path, "run", {})


@pytest.mark.slow  # of `.ci/run full`, which has the extra
def test_tensorboardx_writes_event_files_with_each_step_once(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    resumed(tmp_path, "tensorboard")
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # length in 8 bytes and its checksum in 4, the event, and its checksum in 4
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(step, "train/loss", float(step)) for step in range(5)]
