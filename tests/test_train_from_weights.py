"""A run that starts from weights: of another run, at another image size, from an export."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import jax
import numpy as np
import pytest
from etils import epath
from random_models import make_params
from tiny_run import WIDTHS, data_dir, tiny  # noqa: F401

from mixer import export, models, train
from mixer.data import readers
from mixer.runtime import agreement
from mixer.training import facts, history
from mixer.training.checkpoint_reader import load_params
from mixer.transfer import init_from, loading
from mixer.transfer.weights import Weights


def test_fine_tuning_starts_from_the_other_runs_parameters(data_dir, tmp_path):
    train.train(tiny(data_dir), tmp_path / "first")
    # A learning rate of zero leaves the parameters where they start.
    config = tiny(data_dir, init_from=str(tmp_path / "first"), **{"optimizer.learning_rate": 0.0, "total_steps": 1})
    train.train(config, tmp_path / "second")
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "first")[1], load_params(tmp_path / "second")[1])


def test_a_run_starts_from_the_parameters_or_their_average_and_notes_which(data_dir, tmp_path, capsys):
    train.train(tiny(data_dir, ema_decay=0.5), tmp_path / "first")
    for average, said in {True: "(their average)", False: "(not their average: config.init_ema is not set)"}.items():
        settings = {"init_from": str(tmp_path / "first"), "init_ema": average, "optimizer.learning_rate": 0.0}
        capsys.readouterr()
        train.train(tiny(data_dir, total_steps=1, **settings), tmp_path / f"second-{average}")
        assert f"starting from {tmp_path}/first {said}; the head is kept" in capsys.readouterr().out
        step, expected = load_params(tmp_path / "first", ema=average)
        jax.tree.map(np.testing.assert_array_equal, expected, load_params(tmp_path / f"second-{average}")[1])
        noted = {"source": str(tmp_path / "first"), "step": step, "digest": facts.digest_of_weights(expected)}
        (start,) = history.read(tmp_path / f"second-{average}")
        assert start.weights == history.first_weights([start]) == noted


def test_what_the_weights_are_is_compared_before_the_processes_read_them_together(data_dir, tmp_path, monkeypatch):
    train.train(tiny(data_dir, total_steps=3, eval_steps=3), tmp_path / "first")
    compared, load = [], loading.load
    meeting = agreement.Meeting(None, 0, 1)
    monkeypatch.setattr(meeting, "compare", lambda facts, *_, **__: compared.append(facts.get("data")))
    monkeypatch.setattr(agreement, "meeting", lambda: meeting)
    monkeypatch.setattr(loading, "load", lambda *which: compared.append("read") or load(*which))
    for steps in (1, 2):
        settings = {"init_from": str(tmp_path / "first"), "total_steps": steps, "warmup_steps": 1, "eval_steps": 1}
        train.train(tiny(data_dir, **settings), tmp_path / "second", allow_config_change=True)
    assert compared[:2] == [{"what init_from holds": "checkpoints of the steps [3]"}, "read"]
    assert [*compared[2]] == ["the digest of the weights of init_from"]
    assert (compared[5], compared.count("read")) == ({}, 1)  # a run that continues does not look at them


def test_what_there_is_at_the_place_of_weights(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "run" / "checkpoints" / "20").mkdir(parents=True)
    found = [loading.held(str(tmp_path / name)) for name in ("a.npz", "b.npz", "run", "run/checkpoints/20")]
    steps = "checkpoints of the steps [20]"
    assert found == ["a file", "nothing", steps, steps]
    assert loading.held("https://storage.googleapis.com/a.npz") == "a file"


def test_weights_that_saw_other_pixels_are_told(data_dir, tmp_path, capsys):
    train.train(tiny(data_dir, total_steps=1, **{"input.permutation": "pixels"}), tmp_path / "first")
    train.train(tiny(data_dir, total_steps=1, init_from=str(tmp_path / "first")), tmp_path / "second")
    assert "; their input.permutation was pixels, here it is none\n" in capsys.readouterr().out


def test_a_permutation_at_another_size_is_told(data_dir, tmp_path):
    permuted = {"input.permutation": "pixels"}
    train.train(tiny(data_dir, total_steps=1, **permuted), tmp_path / "first")
    weights = loading.load(str(tmp_path / "first"))
    assert init_from.other_pixels(weights, tiny(data_dir, **permuted)) == ""
    larger = tiny(data_dir, **permuted, **{"input.image_size": 32, "input.eval_resize": 32})
    said = "; their pixels were permuted at 16 pixels, which says nothing of the order at another size"
    assert init_from.other_pixels(weights, larger) == said


def test_a_head_bias_that_is_not_read_is_told(data_dir, tmp_path, capsys):
    train.train(tiny(data_dir, total_steps=1), tmp_path / "first")
    settings = {"init_from": str(tmp_path / "first"), "model.head_bias_init": -5.0}
    train.train(tiny(data_dir, total_steps=1, **settings), tmp_path / "second")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("starting from /")]
    assert "; the head is kept: " in line
    assert line.endswith("; config.model.head_bias_init=-5.0 is not read")


def test_a_run_at_another_image_size_than_its_weights_says_so(data_dir, tmp_path, capsys):
    config = tiny(data_dir, total_steps=1)
    size = config.input.image_size
    train.train(config, tmp_path / "first")
    larger = {"init_from": str(tmp_path / "first"), "total_steps": 1}
    larger |= {"input.image_size": 2 * size, "input.eval_resize": 2 * size, "model.tokens_mlp_dim": None}
    train.train(tiny(data_dir, **larger), tmp_path / "second")
    said = (
        f"starting from {tmp_path}/first, whose weights are brought from {size} to {2 * size} pixels; the head is kept"
    )
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("to", "suffix"), [("npz", ".npz"), pytest.param("timm", ".safetensors", marks=pytest.mark.slow)]
)
def test_a_run_from_an_export_says_what_becomes_of_the_head(data_dir, tmp_path, capsys, to, suffix):
    """With a learning rate of zero, a new head stays zero, and a head that is kept stays as it was."""
    params = make_params(models.create("Ti/8", 4, **WIDTHS), 16, seed=1)
    classes = readers.open_source(tiny(data_dir).input, "train", tmp_path / "cache").class_names
    exports = {"same": list(classes), "others": ["ant", *classes[1:]], "unnamed": None}
    said = {
        "same": "the head is kept: 4 classes there and here, which are only numbered",
        "others": f"a new head: the classes differ (class 0 is 'ant' there, {classes[0]!r} here)",
        "unnamed": "the head is kept: the weights do not name their 4 classes, which are as many as here",
    }
    for name, names in exports.items():
        file, workdir = epath.Path(tmp_path / f"{name}{suffix}"), tmp_path / name
        export.export(Weights(params, "a.npz", class_names=names), to, file, command="")
        capsys.readouterr()
        settings = {"init_from": str(file), "optimizer.learning_rate": 0.0, "total_steps": 1}
        train.train(tiny(data_dir, **settings), workdir)
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "head" in line] == [f"starting from {file}; {said[name]}"]
        head = load_params(workdir)[1]["head"]["kernel"]
        expected = np.zeros_like(head) if name == "others" else params["head"]["kernel"]
        np.testing.assert_array_equal(head, expected)
