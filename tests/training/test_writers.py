"""Writers: what a run gives them, how one is added, and Weights & Biases in its offline mode."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest
import wandb_files

from mixer.config import checks, recipe
from mixer.runtime.errors import UserError
from mixer.training import weights_and_biases, writers
from mixer.training.metrics import MetricsLog, read_metrics
from mixer.training.writer import Writer

ROOT = pathlib.Path(__file__).resolve().parents[2]

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed: `make test-wandb` has it"
)


class Noted(Writer):
    """Notes what it is given."""

    def __init__(self, workdir, step, written, repeats):
        self.opened, self.given = (step, dict(written), repeats), []

    def write_scalars(self, step, scalars):
        self.given.append((step, dict(scalars)))

    def close(self):
        self.given.append("closed")


@pytest.fixture
def noted(monkeypatch):
    """Registers a writer; returns those that are opened."""
    found = []

    def open_writer(*arguments):
        found.append(Noted(*arguments))
        return found[-1]

    monkeypatch.setitem(writers.WRITERS, "noted", writers.Kind(open_writer))
    return found


def test_a_registered_writer_gets_the_lines_and_what_was_written_before(tmp_path, noted):
    for start in ({10: 1.0, 20: 2.0, 30: 3.0}, {20: 2.5}):
        log = MetricsLog(tmp_path, 10, writers=("noted",))
        for step, value in start.items():
            log.write(step, {"loss": value})
        log.close()
    first, second = noted
    assert first.opened == (10, {}, True)
    assert first.given == [(10, {"loss": 1.0}), (20, {"loss": 2.0}), (30, {"loss": 3.0}), "closed"]
    assert second.opened == (10, {step: {"step": step, "loss": step / 10} for step in (10, 20, 30)}, True)
    assert second.given == [(20, {"loss": 2.5}), "closed"]
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20]
    for step, repeats in ((10, False), (0, True)):  # other data or another config, or a run that begins anew
        MetricsLog(tmp_path, step, writers=("noted",), repeats=repeats).close()
        found, written, again = noted[-1].opened
        assert (found, list(written), again) == (step, [10, 20] if step else [], False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]  # no files of TensorBoard


def test_only_the_first_process_opens_writers(tmp_path, noted, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = MetricsLog(tmp_path, 0, writers=("noted", "wandb"))
    log.write(1, {"loss": 1.0})
    log.describe(1, checks.checked(recipe.base()), lambda: pytest.fail("drawn"))
    log.close()
    assert noted == []


def test_a_writer_that_fails_ends_alone(tmp_path, noted, monkeypatch, caplog):
    log = MetricsLog(tmp_path, 0, writers=("noted", "tensorboard"))
    monkeypatch.setattr(noted[0], "write_scalars", lambda step, scalars: 1 / 0)
    log.write(1, {"train/loss": 1.0})
    log.write(2, {"train/loss": 2.0})
    log.close()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("mixer")] == [
        "The writer noted cannot write (division by zero): it gets no more metrics."
    ]
    assert noted[0].given == []
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_writer_that_cannot_be_opened_ends_a_run_that_begins_and_no_other(tmp_path, noted, monkeypatch, caplog):
    def refuse(*_):
        raise UserError("no network")

    monkeypatch.setitem(writers.WRITERS, "comet", writers.Kind(refuse))
    with pytest.raises(UserError, match="no network"):
        MetricsLog(tmp_path, 0, writers=("noted", "comet"))
    assert noted[0].given == ["closed"]
    log = MetricsLog(tmp_path, 10, writers=("comet",))
    log.write(20, {"loss": 1.0})
    log.close()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("mixer")] == [
        "The writer comet gets no metrics from this start: no network"
    ]
    assert [line["step"] for line in read_metrics(tmp_path)] == [20]


def test_no_writer_at_all(tmp_path):
    MetricsLog(tmp_path, 0, writers=()).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(writers.WRITERS, "comet", writers.Kind(Noted, library="no_such_library"))
    writers.check_installed(["tensorboard"])
    with pytest.raises(UserError) as caught:
        writers.check_installed(["tensorboard", "comet"])
    assert str(caught.value) == (
        "config.metrics.writers has comet, whose library is not installed: pip install no_such_library, or leave comet "
        "out"
    )


def test_the_example_of_the_page_is_a_writer(tmp_path, monkeypatch):
    page = (ROOT / "docs/extending.md").read_text()
    section = re.search(r"^## A metric writer\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)[1]
    (module,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (entry,) = re.findall(r'`("\w+": writers\.Kind\(.*?\)|"\w+": Kind\(.*?\))`', section)
    scope: dict = {}
    exec(module, scope)
    kinds = eval(f"{{{entry}}}", {"Kind": writers.Kind, "csv_file": type("module", (), scope)})
    for name, kind in kinds.items():
        monkeypatch.setitem(writers.WRITERS, name, kind)
    # Killed after step 3, saved at step 2; then continued with another config.
    for step, more in ((0, {1: 0.5, 2: 0.25, 3: 0.125}), (2, {3: 0.125}), (2, {3: 0.5})):
        log = MetricsLog(tmp_path, step, writers=tuple(kinds), repeats=more != {3: 0.5})
        for number, loss in more.items():
            log.write(number, {"train/loss": loss})
        log.close()
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    losses = {1: 0.5, 2: 0.25, 3: 0.125}
    assert rows == [*([str(at), "train/loss", str(loss)] for at, loss in losses.items()), ["3", "train/loss", "0.5"]]


# ------------------------------------------------------------------------------------------------- Weights & Biases


class Run:
    """An open run of W&B. Rows never go back, as in the real one."""

    def __init__(self, starting_step=0, resumed=False):
        self.starting_step, self.resumed, self.rows = starting_step, resumed, []

    def log(self, values, step, commit):
        assert commit
        assert step >= (self.rows[-1][0] + 1 if self.rows else self.starting_step)
        self.rows.append((step, values))


def lines(*steps):
    return {step: {"step": step, "train/loss": float(step)} for step in steps}


def test_steps_that_wandb_has_are_not_written_again_and_late_metrics_are():
    """An evaluation that a stop cut short is made up for at a step before the last row."""
    run = Run(starting_step=41, resumed=True)
    writer = weights_and_biases.continued(run, 20, lines(10, 20, 30, 40), begins=False)
    writer.write_scalars(20, {"val/accuracy": 0.5})
    for step in (30, 40, 50):
        writer.write_scalars(step, {"train/loss": float(step)})
    assert run.rows == [(41, {"step": 20, "val/accuracy": 0.5}), (50, {"step": 50, "train/loss": 50.0})]


@pytest.mark.parametrize(
    ("starting_step", "resumed", "begins", "rows"),
    [
        (11, True, False, [20, 30, 40]),  # a killed process had uploaded no more than the first line
        (0, False, True, [10, 20, 30, 40]),  # the run names this writer later
        (0, False, False, [40]),  # offline
    ],
)
def test_lines_that_wandb_lacks_are_written(starting_step, resumed, begins, rows):
    run = Run(starting_step, resumed)
    writer = weights_and_biases.continued(run, 20, lines(10, 20, 30), begins)
    for step in (30, 40):
        writer.write_scalars(step, {"train/loss": float(step)})
    assert run.rows == [(step, {"step": step, "train/loss": float(step)}) for step in rows]


@pytest.mark.parametrize("repeats", [True, False])
def test_steps_that_come_out_otherwise_begin_another_run_of_wandb(tmp_path, monkeypatch, repeats):
    """With a stand-in for the library, which is not installed everywhere."""
    begun = []

    def init(*, id, **_):
        begun.append(id)
        return run

    run = Run()
    run.define_metric = lambda *_, **__: None
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=lambda **_: None))
    weights_and_biases.open_writer(tmp_path, 0, {}, repeats=False)
    weights_and_biases.open_writer(tmp_path, 20, lines(10, 20, 30), repeats=repeats)
    assert (begun[1] == begun[0]) == repeats
    assert [values["step"] for _, values in run.rows] == ([] if repeats else [10, 20])


def offline_start(folder, step, lines, kill, repeats=True):
    """A start of a run in a process of its own, which continues from a checkpoint at `step`."""
    code = f"""
import os, signal, time
import numpy as np
from mixer.config import checks, recipe
from mixer.training.metrics import MetricsLog
log = MetricsLog({str(folder)!r}, {step}, writers=("wandb",), repeats={repeats})
log.describe({step + 1}, checks.checked(recipe.base()), lambda: np.zeros((4, 6, 3), np.uint8))
for step, scalars in {lines!r}.items():
    log.write(step, scalars)
if {kill}:
    time.sleep(4)  # wandb writes to the disk every second
    os.kill(os.getpid(), signal.SIGKILL)
log.close()
"""
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == (-9 if kill else 0), done.stderr


@needs_wandb
def test_a_run_that_is_killed_and_continued_is_one_run_of_wandb_with_each_step_once(tmp_path):
    folder = tmp_path / "b16"
    folder.mkdir()
    offline_start(folder, 0, {step: {"train/loss": float(step)} for step in (10, 20, 30, 40)}, kill=True)
    again = {20: {"val/accuracy": 0.5}, **{step: {"train/loss": float(step)} for step in (30, 40, 50)}}
    offline_start(folder, 20, again, kill=False)
    runs = [run for kind, run in wandb_files.records(folder) if kind == "run"]
    assert [(run.project, run.display_name) for run in runs] == [("mixer", "b16")] * 2
    assert {run.run_id for run in runs} == {(folder / weights_and_biases.ID_FILE).read_text().strip()}
    rows = wandb_files.rows(folder)
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(step, float(step)) for step in (10, 20, 30, 40, 50)]
    assert [(row["step"], row["val/accuracy"]) for row in rows if "val/accuracy" in row] == [(20, 0.5)]
    assert [row["_step"] for row in rows] == [1, 10, 20, 30, 40, 41, 50]  # W&B never goes back
    assert [row["step"] for row in rows if "first batch/_type" in row] == [1]
    shown, expected = wandb_files.config(folder), json.loads(checks.checked(recipe.base()).to_json())
    assert {name: shown[name] for name in expected} == expected


@needs_wandb
def test_steps_that_come_out_otherwise_go_to_another_run_of_wandb(tmp_path):
    folder = tmp_path / "b16"
    folder.mkdir()
    offline_start(folder, 0, {step: {"train/loss": float(step)} for step in (10, 20, 30)}, kill=False)
    first = (folder / weights_and_biases.ID_FILE).read_text()
    offline_start(folder, 20, {30: {"train/loss": 0.5}}, kill=False, repeats=False)
    assert (folder / weights_and_biases.ID_FILE).read_text() != first
    losses = [(row["step"], row["train/loss"]) for row in wandb_files.rows(folder) if "train/loss" in row]
    assert losses == [(10, 10.0), (20, 20.0), (30, 30.0), (10, 10.0), (20, 20.0), (30, 0.5)]


@needs_wandb
def test_an_account_that_is_missing_is_one_line(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"config.metrics.writers has wandb, which cannot begin \(.*\): see `wandb log"):
        weights_and_biases.open_writer(tmp_path, 0, {}, repeats=False)
    assert not (tmp_path / weights_and_biases.ID_FILE).exists()
