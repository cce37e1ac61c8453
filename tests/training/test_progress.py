"""Speed, waiting time and time left, measured with a clock that the test moves."""

import threading

import pytest

from mixer.training import progress as progress_module
from mixer.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

        def forward(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock.now)
    return clock


class Step:
    """A result of a step. It is ready when the test sets `event`."""

    def __init__(self, done: bool = False):
        self.event = threading.Event()
        if done:
            self.event.set()

    def block_until_ready(self):
        self.event.wait()


def dispatch(progress, step):
    """Dispatches a step. If it is done, waits until the thread has noted this."""
    progress.dispatched(step)
    if step.event.is_set():
        progress._free.result()


def test_devices_wait_from_the_end_of_a_step_to_the_dispatch_of_the_next(clock):
    progress = Progress(step=100, total_steps=1100, batch_size=64)
    dispatch(progress, Step(done=True))
    clock.forward(4)
    dispatch(progress, busy := Step())
    clock.forward(5)
    dispatch(progress, last := Step())  # the step before is not done
    clock.forward(1)
    assert progress.measure(150) == pytest.approx(
        {"images_per_sec_per_core": 50 * 64 / 10 / 8, "device_wait_share": 0.4, "seconds_left": 950 * 10 / 50}
    )
    for step in (busy, last):
        step.event.set()


def test_a_pause_counts_neither_as_time_nor_as_waiting(clock):
    progress = Progress(step=0, total_steps=40, batch_size=8)
    dispatch(progress, Step(done=True))
    with progress.pause():
        clock.forward(7)
    progress._free.result()
    clock.forward(2)
    dispatch(progress, Step(done=True))
    clock.forward(8)
    assert progress.measure(10) == pytest.approx(
        {"images_per_sec_per_core": 1.0, "device_wait_share": 0.2, "seconds_left": 30 * (1 + 7 / 10)}
    )


def test_each_measurement_starts_anew(clock):
    progress = Progress(step=0, total_steps=40, batch_size=8)
    dispatch(progress, Step(done=True))
    clock.forward(5)
    progress.measure(10)
    clock.forward(5)
    dispatch(progress, Step(done=True))  # half of the wait belongs to the first measurement
    clock.forward(15)
    assert progress.measure(20) == pytest.approx(
        {"images_per_sec_per_core": 0.5, "device_wait_share": 0.25, "seconds_left": 40.0}
    )


def test_the_time_left_has_as_many_pauses_as_so_far(clock):
    progress = Progress(step=100, total_steps=160, batch_size=8)
    clock.forward(10)
    with progress.pause():
        clock.forward(30)
    assert progress.measure(110)["seconds_left"] == 50 * (1 + 30 / 10)
    clock.forward(20)
    assert progress.measure(120)["seconds_left"] == 40 * (2 + 30 / 20)
    assert progress.measure(120) == {}
    clock.forward(5)
    assert progress.measure(160)["seconds_left"] == 0
