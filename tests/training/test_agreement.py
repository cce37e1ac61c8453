"""Processes that train as one find what differs between them before the first step."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import dataclasses
import socket
import subprocess

import pytest
from test_train import ROOT, command, data_dir, environment, tiny  # noqa: F401

from mixer.data import readers
from mixer.training import agreement


@pytest.fixture
def source(data_dir, tmp_path):
    config = tiny(data_dir)
    return readers.open_source(config.input, config.input.train_split, tmp_path)


def test_the_same_config_and_data_agree(data_dir, source):
    config = tiny(data_dir)
    elsewhere = tiny(data_dir, init_from="/other/weights.npz")
    found = [agreement.facts(config, {"training": source}), agreement.facts(elsewhere, {"training": source})]
    assert agreement.differences(found) == []


def test_what_differs_is_named(data_dir, source):
    one = agreement.facts(tiny(data_dir), {"training": source})
    other = agreement.facts(tiny(data_dir, **{"optimizer.learning_rate": 0.5, "seed": 3}), {"training": source})
    assert agreement.differences([one, one, other]) == [
        "process 2 differs from process 0 in optimizer.learning_rate: 0.5 there, 0.003 in process 0",
        "process 2 differs from process 0 in seed: 3 there, 0 in process 0",
    ]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"class_names": ["a", "b", "c", "e"]}, "the class names of the training data"),
        ({"num_examples": 71}, "the number of training examples"),
        ({"fetch": None}, "the training data"),
    ],
)
def test_other_data_are_noticed(data_dir, source, change, name):
    config = tiny(data_dir)
    if "fetch" in change:
        change = {"fetch": lambda numbers: source.fetch(numbers + 1)}
        source = dataclasses.replace(source, num_examples=source.num_examples - 1)
    other = dataclasses.replace(source, **change)
    found = agreement.differences(
        [agreement.facts(config, {"training": source}), agreement.facts(config, {"training": other})]
    )
    assert any(f"differs from process 0 in {name}" in line for line in found)


def pair(data_dir, workdirs, changes):
    """Runs two processes that train as one, and returns what they say on standard error."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for number, (workdir, change) in enumerate(zip(workdirs, changes, strict=True)):
        joining = ("--distributed", f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={number}")
        started.append(subprocess.Popen(
            command(data_dir, workdir, *joining, **change),
            cwd=ROOT, env=environment(4), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
    said = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1], said
    return said


def test_two_processes_with_other_learning_rates_end_with_a_line_each(data_dir, tmp_path):
    said = pair(data_dir, [tmp_path, tmp_path], [{}, {"optimizer.learning_rate": 0.5}])
    line = (
        "error: process 1 differs from process 0 in optimizer.learning_rate: 0.5 there, 0.003 in process 0; start all "
        "processes with the same command, software and data"
    )
    assert all(text.splitlines().count(line) == 1 and "Traceback" not in text for text in said), said
    assert not list(tmp_path.glob(".shared-*"))


@pytest.mark.slow  # it waits for a file that does not come
def test_two_processes_with_folders_of_their_own_end_with_a_line_each(data_dir, tmp_path):
    said = pair(data_dir, [tmp_path / "one", tmp_path / "other"], [{}, {}])
    assert all("error: not seen by process 1: what process 0 writes to its folder" in text for text in said), said
