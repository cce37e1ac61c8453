"""The log of metrics survives a kill and a full disk."""

import contextlib
import errno
import io
import json
import math
import os
import time
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util import tensor_util

from mixer.config import recipe
from mixer.runtime import files
from mixer.runtime.errors import UserError
from mixer.training.metrics import METRICS_FILE, MetricsLog, read_metrics


def write_steps(folder, restored_at, lines):
    """Writes scalars by step to the log of a run that continues from a checkpoint."""
    log = MetricsLog(folder, restored_at)
    for step, scalars in lines.items():
        log.write(step, scalars)
    log.close()


def test_metrics_read_back(tmp_path):
    lines = {50: {"train/loss": 0.1 + 0.2, "train/lr": 1e-30}, 100: {"val/accuracy": 0.75, "val/count": 10}}
    write_steps(tmp_path, 0, lines)
    assert read_metrics(tmp_path) == [{"step": step, **scalars} for step, scalars in lines.items()]


def test_without_a_file_there_are_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_values_that_are_not_finite_are_null_in_the_file_and_nan_when_read(tmp_path):
    write_steps(tmp_path, 0, {1: {"loss": math.nan, "norm": math.inf}})
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "loss": null, "norm": null}\n'
    (line,) = read_metrics(tmp_path)
    assert list(line) == ["step", "loss", "norm"]
    assert math.isnan(line["loss"])
    assert math.isnan(line["norm"])


def test_lines_of_before_with_nan_and_infinity_are_read(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": NaN, "norm": Infinity}\n')
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["loss"])
    assert line["norm"] == math.inf


def test_a_continued_run_drops_the_lines_after_its_checkpoint(tmp_path):
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
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]
    write_steps(tmp_path, 10, {20: {"loss": 2.0}})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]


def test_damaged_lines_in_the_middle_cost_no_others(tmp_path):
    write_steps(tmp_path, 0, {step: {"loss": float(step)} for step in (10, 20, 30, 40)})
    path = tmp_path / METRICS_FILE
    lines = path.read_bytes().splitlines()
    lines[1] = b"\xff\x00" + lines[1][5:]
    path.write_bytes(b"\n".join([*lines, b"[]", b'{"loss": 1.0}', b'{"step": "x"}']))
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 30, 40]
    write_steps(tmp_path, 30, {40: {"loss": 4.5}})
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 30, 40]


class FullDisk:
    """A disk that takes half of each line that is appended, while it is `full`."""

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

        write_text = files.write_text

        def write_text_(path, text):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            write_text(path, text)

        monkeypatch.setattr(kind, "open", open_)
        monkeypatch.setattr(files, "write_text", write_text_)


def test_lines_that_do_not_fit_on_the_disk_are_written_when_there_is_room(tmp_path, monkeypatch, caplog):
    log = MetricsLog(tmp_path, 0, on_error="continue")
    log.write(1, {"loss": 1.0})
    disk = FullDisk(monkeypatch)
    for step in (2, 3):
        log.write(step, {"loss": float(step)})
        assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "loss": 1.0}\n'
    disk.full = False
    log.write(4, {"loss": 4.0})
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    said = [record.getMessage() for record in caplog.records if record.name == "mixer.training.metrics"]
    assert len(said) == 2
    assert "metrics.jsonl cannot be written to ([Errno 28] No space left on device), training goes on" in said[0]


def test_a_file_that_cannot_be_shortened_either_does_not_end_a_run_that_goes_on(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, 0, on_error="continue")
    log.write(1, {"loss": 1.0})
    disk = FullDisk(monkeypatch)

    def truncate(path, length):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "truncate", truncate)
    log.write(2, {"loss": 2.0})
    disk.full = False
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_line_that_does_not_fit_on_the_disk_stops_the_run_by_default(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"loss": 1.0})
    FullDisk(monkeypatch)
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written to \(.*No space left.*: make it possible"):
        log.write(2, {"loss": 2.0})
    log.close()
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_line_that_gets_more_scalars_on_a_full_disk_does_not_stop_a_run_that_goes_on(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, 0, on_error="continue")
    log.write(1, {"loss": 1.0})
    disk = FullDisk(monkeypatch)
    log.write(1, {"val/loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    disk.full = False
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0, "val/loss": 2.0}]


def test_curves_that_cannot_be_written_do_not_stop_a_run(tmp_path, caplog):
    log = MetricsLog(tmp_path, 0)

    class Broken:
        def write_scalars(self, step, scalars):
            raise RuntimeError("no space")

    log._writers.close()
    log._writers._open["tensorboard"] = Broken()
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert len([record for record in caplog.records if "The writer tensorboard cannot write" in record.message]) == 1


def curves_of(folder):
    """What TensorBoard reads of a folder: by tag, pairs of step and value (or of step and shape)."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder))
    events.Reload()
    values = {tag: [(one.step, make_ndarray(one.tensor_proto)) for one in events.Tensors(tag)] for tag in tags(events)}
    return {tag: [(step, float(value)) for step, value in pairs] for tag, pairs in values.items()}


def tags(events):
    return [tag for tag in events.Tags()["tensors"] if "/" in tag and not tag.startswith("_")]


def test_tensorboard_reads_the_same_values(tmp_path):
    write_steps(tmp_path, 0, {10: {"train/loss": 2.5, "val/accuracy": 0.5}, 20: {"train/loss": 1.25}})
    assert curves_of(tmp_path) == {"train/loss": [(10, 2.5), (20, 1.25)], "val/accuracy": [(10, 0.5)]}


def test_tensorboard_shows_repeated_steps_once(tmp_path):
    write_steps(tmp_path, 0, {step: {"train/loss": float(step)} for step in (10, 20, 30, 40)})
    for start, restored_at in enumerate((20, 30)):  # killed twice
        time.sleep(1.1)  # the names of the files have the second
        again = {step: {"train/loss": step + start + 0.5} for step in (10, 20, 30, 40, 50) if step > restored_at}
        write_steps(tmp_path, restored_at, again)
    assert curves_of(tmp_path) == {"train/loss": [(10, 10.0), (20, 20.0), (30, 30.5), (40, 41.5), (50, 51.5)]}
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path)] == curves_of(tmp_path)["train/loss"]


def test_a_run_that_begins_anew_keeps_no_line_and_no_point(tmp_path):
    write_steps(tmp_path, 0, {0: {"val/loss": 2.0, "val/accuracy": 0.5}, 10: {"train/loss": 1.0}})
    time.sleep(1.1)
    write_steps(tmp_path, 0, {0: {"val/loss": 3.0}, 20: {"train/loss": 0.5}})
    expected = [{"step": 0, "val/loss": 3.0}, {"step": 20, "train/loss": 0.5}]
    assert read_metrics(tmp_path) == expected
    assert curves_of(tmp_path) == {"val/loss": [(0, 3.0)], "val/accuracy": [], "train/loss": [(20, 0.5)]}


def test_tensorboard_shows_config_and_first_batch(tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.util.tensor_util import make_ndarray

    config = recipe.base()
    config.seed, config.model.variant = 7, "S/32"
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    log = MetricsLog(tmp_path, 5)
    log.describe(6, config, lambda: picture)
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (text,), (image,) = events.Tensors("config"), events.Tensors("first batch")
    assert (text.step, image.step) == (6, 6)
    shown = make_ndarray(text.tensor_proto).item().decode()
    assert all(line.startswith("    ") for line in shown.splitlines())  # Markdown's code
    assert json.loads(shown) == json.loads(config.to_json())
    np.testing.assert_array_equal(Image.open(io.BytesIO(make_ndarray(image.tensor_proto)[2])), picture)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert (hparams["seed"].number_value, hparams["model.variant"].string_value) == (7, "S/32")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_steps(tmp_path, 0, {10: {"loss": 1.0}})
    assert list(tmp_path.iterdir()) == []


def test_a_continued_run_draws_no_step_twice(tmp_path):
    """Not even after a kill, when TensorBoard has points of steps that are taken again."""
    write_steps(tmp_path, 0, {step: {"loss": float(step)} for step in (10, 20, 30, 40)})
    time.sleep(1.1)  # the files are named by the second, and TensorBoard reads them in the order of their names
    write_steps(tmp_path, 20, {30: {"loss": 3.5}, 40: {"loss": 4.5}})
    curves = plugin_event_accumulator.EventAccumulator(str(tmp_path))
    curves.Reload()
    found = [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in curves.Tensors("loss")]
    assert found == [(10, 10.0), (20, 20.0), (30, 3.5), (40, 4.5)]


def test_in_a_bucket_lines_wait_for_a_minute_or_a_checkpoint(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("mixer.training.metrics.bucket", types.SimpleNamespace(is_remote=lambda path: True))
    log = MetricsLog(tmp_path, 0)

    def steps():
        return [line["step"] for line in read_metrics(tmp_path)]

    log.write(1, {"loss": 1.0})  # the file was made a moment ago
    now += 59
    log.write(2, {"loss": 2.0})
    assert steps() == []
    now += 2
    log.write(3, {"loss": 3.0})
    assert steps() == [1, 2, 3]
    log.write(4, {"loss": 4.0})
    assert steps() == [1, 2, 3]
    log.flush()
    assert steps() == [1, 2, 3, 4]
    log.write(5, {"loss": 5.0})
    log.close()  # the folder may be another's
    assert steps() == [1, 2, 3, 4]
