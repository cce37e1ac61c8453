"""The run's own words: logs that survive a kill, honest arithmetic, one line on the screen."""

import contextlib
import errno
import io
import json
import math
import sys
import threading

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from mixer.runtime.errors import UserError
from mixer.training import metrics
from mixer.training.metrics import METRICS_FILE, Console, MetricsLog, Progress, format_seconds, read_metrics


def write_steps(folder, restored_at, rows):
    log = MetricsLog(folder, restored_at)
    for step, scalars in rows.items():
        log.write(step, scalars)
    log.close()


def test_metrics_read_back(tmp_path):
    rows = {50: {"train/loss": 0.1 + 0.2, "train/lr": 1e-30}, 100: {"val/accuracy": 0.75, "val/count": 10}}
    write_steps(tmp_path, 0, rows)
    assert read_metrics(tmp_path) == [{"step": step, **scalars} for step, scalars in rows.items()]


def test_without_a_file_there_are_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_values_that_are_not_finite_read_back(tmp_path):
    write_steps(tmp_path, 0, {1: {"loss": math.nan, "norm": math.inf}})
    ((_, loss), (_, norm)) = list(read_metrics(tmp_path)[0].items())[1:]
    assert math.isnan(loss)
    assert norm == math.inf


def test_a_continued_run_drops_the_lines_behind_its_checkpoint(tmp_path):
    write_steps(tmp_path, 0, {step: {"loss": float(step)} for step in (10, 20, 30, 40)})
    write_steps(tmp_path, 20, {30: {"loss": 3.5}})
    assert read_metrics(tmp_path) == [
        {"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": 3.5},
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [0, 1, 5, 20])
def test_a_line_cut_short_is_left_out_and_overwritten(tmp_path, kept):
    write_steps(tmp_path, 0, {10: {"loss": 1.0}, 20: {"loss": 2.0}})
    path = tmp_path / METRICS_FILE
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:kept]}")
    assert [row["step"] for row in read_metrics(tmp_path)] == [10]
    write_steps(tmp_path, 10, {20: {"loss": 2.0}})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]


def test_damaged_lines_in_the_middle_cost_no_others(tmp_path):
    write_steps(tmp_path, 0, {step: {"loss": float(step)} for step in (10, 20, 30, 40)})
    path = tmp_path / METRICS_FILE
    lines = path.read_bytes().splitlines()
    lines[1] = b"\xff\x00" + lines[1][5:]
    path.write_bytes(b"\n".join([*lines, b"[]", b'{"loss": 1.0}', b'{"step": "x"}']))
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 30, 40]
    write_steps(tmp_path, 30, {40: {"loss": 4.5}})
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 30, 40]


class FullDisk:
    """Of what is written to the metrics half arrives, while `full`."""

    def __init__(self, monkeypatch):
        self.full = True
        kind = type(epath.Path("."))
        original = kind.open

        @contextlib.contextmanager
        def open_(path, mode="r", **named):
            with original(path, mode, **named) as file:
                if not (self.full and mode == "a"):
                    yield file
                    return
                text = io.StringIO()
                yield text
                file.write(text.getvalue()[: len(text.getvalue()) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(kind, "open", open_)


def test_lines_that_find_no_room_are_written_when_there_is_some(tmp_path, monkeypatch, caplog):
    log = MetricsLog(tmp_path, 0, on_error="continue")
    log.write(1, {"loss": 1.0})
    disk = FullDisk(monkeypatch)
    for step in (2, 3):
        log.write(step, {"loss": float(step)})
        assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "loss": 1.0}\n'
    disk.full = False
    log.write(4, {"loss": 4.0})
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    said = [record.getMessage() for record in caplog.records if record.name == "mixer.training.metrics"]
    assert len(said) == 2
    assert "metrics.jsonl cannot be written to ([Errno 28] No space left on device), training goes on" in said[0]


def test_lines_that_find_no_room_stop_the_run_by_default(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"loss": 1.0})
    FullDisk(monkeypatch)
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written to \(.*No space left.*: make it possible"):
        log.write(2, {"loss": 2.0})
    log.close()
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "loss": 1.0}\n'


def test_curves_that_cannot_be_written_do_not_stop_a_run(tmp_path, caplog):
    log = MetricsLog(tmp_path, 0)

    class Broken:
        def write_scalars(self, step, scalars):
            raise RuntimeError("no space")

    log._tensorboard.close()
    log._tensorboard = Broken()
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert len([record for record in caplog.records if "TensorBoard's files cannot be written" in record.message]) == 1


def test_tensorboard_reads_the_same_values(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    rows = {10: {"train/loss": 2.5, "val/accuracy": 0.5}, 20: {"train/loss": 1.25}}
    write_steps(tmp_path, 0, rows)
    events = EventAccumulator(str(tmp_path), size_guidance={TENSORS: 0})
    events.Reload()
    found = {
        tag: {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }
    assert found == {"train/loss": {10: 2.5, 20: 1.25}, "val/accuracy": {10: 0.5}}


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_steps(tmp_path, 0, {10: {"loss": 1.0}})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------- speed


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

        def forward(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock.now)
    return clock


class Step:
    """What a step makes, done when the test says so."""

    def __init__(self, done: bool = False):
        self.event = threading.Event()
        if done:
            self.event.set()

    def block_until_ready(self):
        self.event.wait()


def dispatch(progress, step):
    """Dispatches the step, and sees to it that the thread has noted those that are done."""
    progress.dispatched(step)
    if step.event.is_set():
        progress._free.result()


def test_devices_wait_from_a_step_s_end_to_the_next_one_s_dispatch(clock):
    progress = Progress(step=100, total_steps=1100, batch_size=64)
    dispatch(progress, Step(done=True))
    clock.forward(4)
    dispatch(progress, busy := Step())
    clock.forward(5)
    dispatch(progress, last := Step())  # the one before is not done
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
        {"images_per_sec_per_core": 1.0, "device_wait_share": 0.2, "seconds_left": 30.0}
    )


def test_each_measurement_starts_anew(clock):
    progress = Progress(step=0, total_steps=40, batch_size=8)
    dispatch(progress, Step(done=True))
    clock.forward(5)
    progress.measure(10)
    clock.forward(5)
    dispatch(progress, Step(done=True))  # half of its wait was in the measurement before
    clock.forward(15)
    assert progress.measure(20) == pytest.approx(
        {"images_per_sec_per_core": 0.5, "device_wait_share": 0.25, "seconds_left": 40.0}
    )


def test_measuring_at_once_or_at_the_end_is_defined(clock):
    progress = Progress(step=5, total_steps=5, batch_size=8)
    measured = progress.measure(5)
    assert measured["seconds_left"] == 0
    assert all(np.isfinite(value) for value in measured.values())


# --------------------------------------------------------------------------------------------------------------- screen

SCALARS = {
    "loss": 1.23456, "learning_rate": 1e-3, "grad_norm": 0.5,
    "images_per_sec_per_core": 1234.4, "device_wait_share": 0.015, "seconds_left": 3661.0,
}  # fmt: skip
LINE = "step 5/10  loss 1.2346  lr 1.00e-03  grad norm 0.500  1234 images/s/core  devices wait 1.5%  1h01m left"


def test_console_in_a_file_writes_line_after_line(capsys):
    console = Console("pre-training: ")
    console.show(5, 10, SCALARS)
    console.keep("done")
    assert capsys.readouterr().out == f"pre-training: {LINE}\npre-training: done\n"


def test_console_on_a_terminal_replaces_its_line(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    console = Console()
    console.show(5, 10, SCALARS)
    console.keep("done")
    assert capsys.readouterr().out == f"\r\033[K{LINE}\r\033[Kdone\n"


def test_console_on_a_narrow_terminal_does_not_wrap(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    Console().show(5, 10, SCALARS)
    assert capsys.readouterr().out == f"\r\033[K{LINE[:39]}"


def test_console_adds_what_follows_to_the_time_left(capsys):
    Console(seconds_after=3600.0).show(5, 10, SCALARS)
    assert capsys.readouterr().out.endswith("2h01m left\n")


def test_console_is_silent_on_other_processes(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    Console().keep("done")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.4, "0s"), (42, "42s"), (59.6, "1m00s"), (185, "3m05s"), (3599, "59m59s"), (3599.7, "1h00m"),
        (25920, "7h12m"), (86399, "23h59m"), (86400, "1d00h"), (367200, "4d06h"), (8640000, "100d00h"),
    ],
)  # fmt: skip
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


@given(st.floats(0, 1e8))
def test_format_seconds_loses_less_than_its_smaller_unit(seconds):
    text, total, digits = format_seconds(seconds), 0, ""
    seconds_of = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    for character in text:
        if character.isdigit():
            digits += character
        else:
            total, digits = total + int(digits) * seconds_of[character], ""
    assert 0 <= round(seconds) - total < seconds_of[text[-1]]
