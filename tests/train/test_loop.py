import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsity import spmd
from sparsity.train.guard import Diverged, Preempted
from sparsity.train.loop import Hooks, Intervals, train
from sparsity.train.state import TrainState
from sparsity.train.step import Record, StepMetrics


class Recorder:
    """A fake step and hooks that write down the order of events."""

    def __init__(self, bad_step=None, signal_at=None):
        self.events, self.bad_step, self.signal_at = [], bad_step, signal_at
        self.hooks = Hooks(
            on_step=lambda s, m: self.events.append(("metrics", s)),
            on_record=lambda s, record: self.events.append(("record", s)),
            on_eval=lambda s, state: self.events.append(("eval", s, int(state.step))),
            on_speed=lambda s, seconds, n: self.events.append(("speed", s, n)),
            save=lambda s, state: self.events.append(("save", s, int(state.step))),
        )

    def step(self, record):
        def run(state, batch):
            s = int(state.step)
            self.events.append(("record_step" if record else "step", s))
            if s == self.signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            one = np.float32(1)
            metrics = StepMetrics(one, one, None, one, one, np.bool_(s != self.bad_step))
            return state.replace(step=state.step + 1), metrics, (Record({}, {}, {}) if record else None)

        return run

    def train(self, steps, every, start=0):
        state = TrainState(np.int32(start), {}, {}, {})
        batches = iter([{"x": np.zeros(8, np.float32)}] * 100)
        mesh = spmd.make_mesh(spmd.MeshConfig(data=1))
        return train(state, batches, self.step(False), self.step(True), mesh, steps, every, self.hooks)


def test_the_order_of_events_is_the_contract():
    recorder = Recorder()
    state = recorder.train(4, Intervals(record=100, eval=2, checkpoint=3, speed=2))
    assert int(state.step) == 4
    assert [e for e in recorder.events if e[0] != "speed"] == [
        ("eval", 0, 0),
        ("record_step", 0),
        ("record", 0),
        ("metrics", 0),
        ("step", 1),
        ("metrics", 1),  # read before the evaluation of step 2, as nothing is left to overlap
        ("eval", 2, 2),
        ("step", 2),
        ("metrics", 2),
        ("save", 3, 3),
        ("record_step", 3),
        ("record", 3),
        ("metrics", 3),
        ("save", 4, 4),
    ]


def test_metrics_of_a_plain_step_are_read_after_the_next_is_dispatched():
    recorder = Recorder()
    recorder.train(6, Intervals(record=100, eval=100, checkpoint=100, speed=100))
    names = [e[:2] for e in recorder.events]
    assert names.index(("step", 3)) < names.index(("metrics", 2)) < names.index(("step", 4))


def test_a_non_finite_step_ends_the_run_and_is_not_saved():
    recorder = Recorder(bad_step=4)
    with pytest.raises(Diverged, match="step 4") as error:
        recorder.train(10, Intervals(record=100, eval=100, checkpoint=5, speed=100))
    assert error.value.step == 4
    assert [e for e in recorder.events if e[0] == "save"] == []
    assert ("metrics", 4) in recorder.events  # its record is written


def test_a_guard_may_leave_steps_out_that_are_not_finite_as_often_as_it_is_told():
    def train_with(skips):
        recorder = Recorder()

        def step(state, batch):  # not finite from step 1 on
            state, metrics, record = recorder.step(False)(state, batch)
            done = int(state.step)
            return state, metrics.replace(finite=np.bool_(done < 2), skipped=np.int32(done - 1)), record

        state, mesh = TrainState(np.int32(0), {}, {}, {}), spmd.make_mesh(spmd.MeshConfig(data=1))
        batches = iter([{"x": np.zeros(8, np.float32)}] * 9)
        train(state, batches, step, step, mesh, 4, Intervals(100, 100, 100, 100), recorder.hooks, skips)
        return recorder.events

    assert ("save", 4, 4) in train_with(3)
    with pytest.raises(Diverged, match="step 3"):
        train_with(2)


def test_parameters_that_are_not_finite_are_not_saved_even_if_their_gradients_were():
    recorder = Recorder()

    def overflow(state, batch):
        state, *rest = recorder.step(False)(state, batch)
        return state.replace(params=jax.device_put({"w": np.float32([1, np.inf])})), *rest

    state = TrainState(np.int32(0), {"w": np.float32([1, 2])}, {}, {})
    batches, mesh = iter([{"x": np.zeros(8, np.float32)}] * 9), spmd.make_mesh(spmd.MeshConfig(data=1))
    with pytest.raises(Diverged, match="step 1"):
        train(state, batches, overflow, overflow, mesh, 9, Intervals(100, 100, 2, 100), recorder.hooks)
    assert not [e for e in recorder.events if e[0] == "save"]


def test_a_stop_signal_saves_the_step_in_progress():
    recorder = Recorder(signal_at=2)
    with pytest.raises(Preempted) as error:
        recorder.train(10, Intervals(record=100, eval=100, checkpoint=100, speed=100))
    assert error.value.step == 3
    assert recorder.events[-1] == ("save", 3, 3)


def test_a_signal_between_the_save_and_the_end_of_a_step_waits_for_the_next_save():
    recorder = Recorder()
    recorder.hooks = dataclasses.replace(
        recorder.hooks, on_record=lambda s, record: s == 2 and os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Preempted) as error:
        recorder.train(10, Intervals(record=2, eval=100, checkpoint=100, speed=100))
    assert error.value.step == 4
    assert recorder.events[-1] == ("save", 4, 4)  # what is said to be saved is saved


def test_a_signal_during_the_last_step_is_not_swallowed():
    recorder = Recorder(signal_at=3)
    with pytest.raises(Preempted):
        recorder.train(4, Intervals(record=100, eval=100, checkpoint=100, speed=100))
    assert recorder.events[-1] == ("save", 4, 4)


def test_an_implicit_host_transfer_in_the_loop_is_an_error():
    recorder = Recorder()
    leaky = jax.jit(lambda s, x: s + x)

    def step(state, batch):
        leaky(batch["x"], np.ones(8, np.float32))  # a numpy array slipping onto the device
        return recorder.step(False)(state, batch)

    state = TrainState(np.int32(0), {}, {}, {})
    mesh = spmd.make_mesh(spmd.MeshConfig(data=1))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(state, iter([{"x": np.zeros(8, np.float32)}] * 3), step, step, mesh, 2, Intervals(), recorder.hooks)


@pytest.mark.parametrize("field", ["record", "eval", "checkpoint", "speed"])
def test_an_interval_below_one_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}: must be at least 1"):
        Intervals(**{field: 0})


def test_jnp_is_untouched_by_the_guard():
    assert float(jnp.ones(()) + 1) == 2
