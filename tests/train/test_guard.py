import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsity import spmd
from sparsity.train.guard import GuardConfig, SpikeConfig, StopSignals, sound
from sparsity.train.losses import Losses
from sparsity.train.state import TrainState, guarded
from sparsity.train.step import make_train_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_asks(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts():
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def body():
        with StopSignals() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def _spikes(losses, window, deviations):
    """Which losses are spikes, in float64, by the definition; those that are not finite (NaN here) are nothing."""
    seen, found = [], []
    for loss in np.asarray(losses, np.float64):
        last = seen[-window:]
        known = len(last) >= max(2, window / 2)
        found.append(bool(known and loss > np.mean(last) + deviations * np.std(last, ddof=1)))
        seen += [loss] if np.isfinite(loss) else []
    return found


def _compute(state, batch):
    """Loss and gradient as the batch has them; running statistics that follow the loss."""
    sums = Losses(batch["loss"], None, jnp.float32(1))
    statistics = {"mean": 0.9 * state.model_state["mean"] + 0.1 * batch["loss"]}
    return (sums, None), {"w": batch["gradient"] * state.params["w"]}, statistics, {}


def _trained(guard, losses, gradients):
    """The state and the metrics of each step of training on these; weights with a negative zero among them."""
    schedule = optax.linear_schedule(0.1, 0.0, 50)
    tx, mesh = optax.adamw(schedule, weight_decay=0.1), spmd.make_mesh(spmd.MeshConfig(data=1))
    params = {"w": jnp.array([1.0, -2.0, -0.0])}
    state = TrainState(jnp.int32(0), params, tx.init(params), {"mean": jnp.float32(0)})
    state = guarded(state, guard.init())
    step, reported = make_train_step(_compute, tx, schedule, mesh, None, guard), []
    for loss, gradient in zip(losses, gradients, strict=True):
        state, metrics, _ = step(state, {"loss": jnp.float32(loss), "gradient": jnp.float32(gradient)})
        reported.append(jax.device_get(metrics))
    return jax.device_get(state), reported


def test_what_is_left_out_leaves_nothing_but_a_count_and_the_rest_is_as_if_it_had_not_been():
    rng = np.random.default_rng(0)
    losses, gradients = rng.normal(3, 0.1, 40), rng.normal(size=40)
    losses[[3, 20]], gradients[[3, 9]] = np.nan, (np.nan, np.inf)
    losses[[15, 16, 30]] = 5, 4, 3.9
    guard = GuardConfig(skips=2, spikes=SpikeConfig(window=10, deviations=4.0))
    finite = np.isfinite(losses) & np.isfinite(gradients)
    spikes = np.array(_spikes(np.where(finite, losses, np.nan), 10, 4.0))
    assert spikes.nonzero()[0].tolist() == [15, 30], "neither none nor all; 4 is none after 5"
    state, reported = _trained(guard, losses, gradients)
    assert [bool(m.finite) for m in reported] == finite.tolist()
    assert [bool(m.spike) for m in reported] == spikes.tolist()
    assert [int(m.skipped) for m in reported] == np.cumsum(~finite).tolist()
    assert (int(state.step), int(state.guard.skipped), int(state.guard.spikes)) == (40, 3, 2)
    assert sorted(state.guard.losses) == sorted(np.float32(losses[finite][-10:]))
    # The same steps without the others, and no guard: bit for bit the same weights, moments and statistics.
    taken = finite & ~spikes
    other, without = _trained(GuardConfig(), losses[taken], gradients[taken])
    assert type(other) is TrainState
    for name in ("params", "opt_state", "model_state"):
        same = lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert jax.tree.all(jax.tree.map(same, getattr(state, name), getattr(other, name))), name
    rates = [m.learning_rate for m, it in zip(reported, taken, strict=True) if it]
    assert rates == [m.learning_rate for m in without]
    assert (without[0].skipped, without[0].spike) == (None, None)


def test_a_loss_that_rises_for_good_is_let_through():
    """Where m of n = 20 losses are high, another one is a spike while 1 - m/n > 2 s, s^2 = m (n - m) / (n (n - 1))."""
    guard = GuardConfig(spikes=SpikeConfig(window=20, deviations=2.0))
    losses = jnp.repeat(jnp.array([1.0, 5.0]), 20)

    def body(state, loss):
        _, spike, state = guard.judge(state, loss, jnp.array(True))
        return state, spike

    _, spikes = jax.jit(lambda: jax.lax.scan(body, guard.init(), losses))()
    left_out = next(m for m in range(20) if 1 - m / 20 <= 2 * (m * (20 - m) / 20 / 19) ** 0.5)
    assert left_out == 4
    assert np.nonzero(spikes)[0].tolist() == [20, 21, 22, 23]
    assert guard.init().losses.shape == (20,)


@pytest.mark.parametrize(
    ("value", "where", "expected"),
    [(1.0, 0, True), (np.inf, 0, False), (np.nan, 0, False), (np.inf, 1, True), (np.nan, 1, False)],
)
def test_no_nan_is_saved_nor_parameters_that_are_infinite(value, where, expected):
    state = [{"w": jnp.ones(3), "b": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.ones(3), "count": jnp.int32(0)}]
    state[where]["w"] = state[where]["w"].at[1].set(value)
    assert sound(*state) is expected


def test_without_a_guard_there_is_nothing_to_remember():
    assert GuardConfig().init() is None
    assert GuardConfig(skips=1).init() is not None
