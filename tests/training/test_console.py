"""The line on the screen, and durations as a person reads them."""

import sys

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.runtime import distributed
from mixer.training import console as console_module
from mixer.training.console import Console, format_seconds

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


@pytest.mark.parametrize("columns", ["200", "40"])
def test_a_step_from_which_the_speed_is_measured_has_none(columns, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", columns)
    Console().show(1, 10, {name: SCALARS[name] for name in ("loss", "learning_rate", "grad_norm")})
    rest = "  lr 1.00e-03  grad norm 0.500" if columns == "200" else "  lr 1.00e-03"
    assert capsys.readouterr().out == f"\r\033[Kstep 1/10  loss 1.2346{rest}"


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
    assert capsys.readouterr().out == "\r\033[Kstep 5/10  loss 1.2346  1h01m left"


@pytest.mark.parametrize("prefix", ["", "[3/9] digits, pre-trained, seed 0  "])
@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_the_time_left_is_seen_at_any_width(columns, prefix, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    Console(prefix).show(12345, 1234567, SCALARS)
    line = capsys.readouterr().out.removeprefix("\r\033[K")
    assert len(line) < columns
    assert "step 12345/1234567  " in line
    assert line.endswith("  1h01m left")
    assert line.startswith(prefix[: columns - 31])


@pytest.mark.parametrize(
    ("speed", "shown"), [(0.0421, "0.0421"), (0.42, "0.42"), (7.26, "7.26"), (99.94, "99.9"), (1e5, "100000")]
)
def test_a_slow_device_has_a_speed(speed, shown, capsys):
    Console().show(5, 10, SCALARS | {"images_per_sec_per_core": speed})
    assert f"  {shown} images/s/core  " in capsys.readouterr().out


class Clock:
    """A clock that each batch moves."""

    now = 0.0

    def batches(self, count, seconds):
        for number in range(count):
            self.now += seconds
            yield number


class Counted(list):
    """Batches of a known number that take a while to make."""

    def __init__(self, clock, count, seconds):
        super().__init__(range(count))
        self._made = clock.batches(count, seconds)

    def __iter__(self):
        return self._made


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock.now)
    return clock


def test_an_evaluation_says_how_far_it_is_in_a_file_once_a_minute(capsys, clock):
    assert list(Console().counted("evaluating", Counted(clock, 10, 25))) == list(range(10))
    assert capsys.readouterr().out == "".join(
        f"evaluating  batch {done}/10  {left} left\n" for done, left in ((2, "5m00s"), (5, "2m30s"), (8, "56s"))
    )


def test_an_evaluation_says_how_far_it_is_on_a_terminal(capsys, clock, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert list(Console().counted("evaluating", Counted(clock, 2, 3))) == [0, 1]
    lines = ["evaluating ...", "evaluating  batch 1/2  6s left", ""]
    assert capsys.readouterr().out == "".join(f"\r\033[K{line}" for line in lines)


def test_batches_of_an_unknown_number_are_counted_too(capsys, clock):
    list(Console(to_stderr=True).counted("evaluating", clock.batches(2, 61)))
    assert capsys.readouterr().err == "evaluating  batch 1\n"


def test_console_adds_what_follows_to_the_time_left(capsys):
    console = Console(steps_after=10)
    console.show(5, 10, SCALARS | {"seconds_left": 5 * 360.0})
    assert capsys.readouterr().out.endswith("1h30m left\n")
    console.show(10, 10, SCALARS | {"seconds_left": 0.0})
    assert capsys.readouterr().out.endswith("1h00m left\n")


def test_what_others_print_stands_below_the_line_of_a_step(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    console = Console()
    console.end()
    assert capsys.readouterr().out == ""
    console.show(5, 10, SCALARS)
    console.end()
    assert capsys.readouterr().out == f"\r\033[K{LINE}\n"
    list(console.counted("evaluating", [1]))  # which leaves an empty line
    console.end()
    console.keep("done")
    console.end()
    assert capsys.readouterr().out.count("\n") == 1


def test_console_says_what_takes_long_before_and_after(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console = Console("[1/7] ")
    with console.timed("compiling the training step"):
        assert capsys.readouterr().out == "[1/7] compiling the training step ...\n"
        now[0] += 185
    assert capsys.readouterr().out == "[1/7] compiling the training step took 3m05s\n"


def test_console_replaces_what_took_long_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console = Console()
    with console.timed("compiling"):
        assert capsys.readouterr().out == "\r\033[Kcompiling ..."
    assert capsys.readouterr().out == "\r\033[Kcompiling took 0s\n"


def test_console_is_silent_on_other_processes(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    Console().keep("done")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("index", "said"), [(0, "done\n"), (1, "")])
def test_a_console_of_several_processes_does_not_look_for_devices(index, said, capsys, monkeypatch):
    """All would wait there for one that has failed."""
    monkeypatch.setattr(distributed, "processes", lambda: distributed.Processes(object(), index, 2))
    monkeypatch.setattr(jax, "process_index", lambda: pytest.fail("looked for devices"))
    Console().keep("done")
    assert capsys.readouterr().out == said


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
