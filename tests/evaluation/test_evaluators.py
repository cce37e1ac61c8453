"""The list of evaluators: which a config has, when each is due, and what a run makes of them."""

import json

import pytest

from configs import quickstart
from mixer.config import checks, durations, recipe
from mixer.data import datasets
from mixer.evaluation import evaluators
from mixer.runtime import preemption
from mixer.runtime.errors import UserError
from mixer.train import train
from mixer.training import checkpoint
from mixer.training.console import Console
from mixer.training.metrics import read_metrics

DATASET = "fractals/4x20x16"  # 72 training and 8 validation images of four classes
TINY = {
    "model.num_blocks": 1,
    "model.hidden_dim": 16,
    "model.tokens_mlp_dim": 8,
    "model.channels_mlp_dim": 32,
    "input.dataset": DATASET,
    "input.image_size": 16,
    "input.eval_resize": 16,
    "batch_size": 8,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 3e-3,
    "total_steps": 6,
    "warmup_steps": 1,
    "log_steps": 2,
    "eval_steps": 3,
    "checkpoint_steps": 6,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    datasets.prepare_embedded(DATASET, folder)
    datasets.prepare_embedded("fractals/5x20x16", folder)
    return folder


def tiny(data_dir, named=None, **changes):
    """A checked config; `named` are the settings of more evaluators."""
    config = quickstart.get_config("fractals")
    settings = {**TINY, "input.data_dir": data_dir, **changes}
    config.update_from_flattened_dict(settings)
    for name, of in (named or {}).items():
        config.evaluators[name] = recipe.evaluator_settings(**of)
    return checks.checked(durations.one_unit_each(config, settings))


class Lines(Console):
    """A console that keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def keep(self, line):
        self.kept.append(line)

    def show(self, *of):
        pass


def accuracies(workdir):
    """Those by which checkpoints are kept, by step."""
    return {int(path.parts[-3]): json.loads(path.read_text()) for path in workdir.glob("checkpoints/*/metrics/metrics")}


def steps_with(workdir, prefix):
    return [row["step"] for row in read_metrics(workdir) if any(name.startswith(prefix) for name in row)]


def test_val_and_few_shot_come_from_their_own_settings(data_dir):
    config = tiny(data_dir)
    assert list(evaluators.settings_of(config)) == ["val"]
    assert evaluators.settings_of(config)["val"].split == "validation"
    named = {"half": {"kind": "classification", "split": "train[:50%]"}}
    config = tiny(data_dir, named, **{"fewshot.dataset": "digits", "fewshot.test_split": "test[:5]"})
    found = evaluators.settings_of(config)
    assert list(found) == ["val", "fewshot", "half"]
    assert (found["fewshot"].kind, found["fewshot"].split, found["fewshot"].l2) == ("few_shot", "test[:5]", 1024.0)
    own = {"train_split": "train[:5]", "seeds": 2, "l2": 1.0, "eval_crop": "resize_small", "eval_resize": 40}
    given = {f"fewshot.{name}": value for name, value in own.items()}
    of_few_shot = evaluators.settings_of(tiny(data_dir, **{"fewshot.dataset": "digits"}, **given))["fewshot"]
    assert {name: of_few_shot[name] for name in own} == own


def test_each_is_due_at_its_own_steps_and_all_at_the_last():
    class Silent:
        num_examples, sources = 0, ()

        def __call__(self, params, through=iter):
            return {}

    found = [evaluators.Scheduled(name, "classification", every, Silent()) for name, every in (("a", 2), ("b", 5))]

    def due(step, at_start=False):
        return "".join(one.name for one in evaluators.due(found, step, 7, at_start))

    assert [due(step) for step in range(8)] == ["", "", "a", "", "a", "b", "a", "ab"]
    assert due(0, at_start=True) == "ab"


NAMED = {
    "often": {"kind": "classification", "split": "train[:10%]", "every_steps": 2},
    "few": {"kind": "few_shot", "split": "validation", "shots": (1,), "seeds": 2, "every_examples": 32},
    "absent": {"kind": "classification", "dataset": "imagenet_v2/matched-frequency", "optional": True},
    "unknown": {"kind": "classification", "dataset": "my_photos", "optional": True},
    "other": {
        "kind": "classification",
        "dataset": "fractals/5x20x16",
        "split": "train",
        "optional": True,
        "label_key": "label",
    },
}


def test_a_run_evaluates_each_at_its_steps_and_leaves_out_what_is_not_there(data_dir, tmp_path):
    lines, config = Lines(), tiny(data_dir, NAMED, ema_decay=0.5, eval_at_start=True)
    before = checks.flat(config)
    train(config, tmp_path, lines)
    assert checks.flat(config) == before  # evaluators of other data leave the run's own settings alone
    assert steps_with(tmp_path, "val/accuracy") == [0, 3, 6]
    assert steps_with(tmp_path, "val_ema/accuracy") == [0, 3, 6]
    assert steps_with(tmp_path, "often/accuracy") == steps_with(tmp_path, "often_ema/") == [0, 2, 4, 6]
    assert steps_with(tmp_path, "few/fractals_4x20x16_1shot") == [0, 4, 6]
    assert steps_with(tmp_path, "few_ema/") == steps_with(tmp_path, "absent") == []
    left_out = [line for line in lines.kept if "left out" in line]
    assert left_out[0].startswith("evaluator absent left out: dataset imagenet_v2/matched-frequency in ")
    said = "evaluator unknown left out: config.evaluators.unknown.dataset='my_photos': no such dataset is prepared in "
    assert left_out[2].startswith(said)
    assert left_out[1].startswith("evaluator other left out: the model tells 4 classes apart, the data has 5: ")
    assert steps_with(tmp_path, "other") == []
    trained_on = [line for line in lines.kept if "trained on" in line]
    assert trained_on == ["evaluator often: all of its 7 images are trained on"]
    first = read_metrics(tmp_path)[0]
    assert (first["step"], first["often/count"], first["val/count"]) == (0, 7, 8)
    assert any(line.startswith("step 0  val/loss ") for line in lines.kept)


def test_an_evaluation_that_a_stop_cut_short_is_made_up_for(data_dir, tmp_path, monkeypatch):
    """Asked to stop while it evaluates at step 3, the run evaluates there on return, and nowhere twice."""
    config = tiny(data_dir, NAMED, total_steps=6)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(config, straight, Lines())

    run_all, calls = evaluators.run, []

    def abandon(due, state, through=iter):
        calls.append([one.name for one in due])
        if len(calls) == 2:
            raise preemption.AbandonedError("asked to stop")
        return run_all(due, state, through)

    monkeypatch.setattr(evaluators, "run", abandon)
    with pytest.raises(preemption.PreemptedError, match="saved at step 3 of 6"):
        train(config, stopped, Lines())
    assert calls == [["often"], ["val"]]
    train(config, stopped, Lines())
    assert accuracies(stopped) == accuracies(straight)
    assert calls[2:] == [["val"], ["few", "often"], ["val", "few", "often"]]  # by name, as ConfigDict has them

    def untimed(row):
        return {name: value for name, value in row.items() if not name.startswith("train/") or name == "train/loss"}

    assert list(map(untimed, read_metrics(stopped))) == list(map(untimed, read_metrics(straight)))


def test_what_was_made_up_for_is_owed_until_its_checkpoint_has_it(data_dir, tmp_path, monkeypatch):
    """The log has it last: else a kill in between would leave the checkpoint without its accuracy for good."""
    config, run_all = tiny(data_dir, NAMED, total_steps=6), evaluators.run

    def abandon(due, state, through=iter):
        raise preemption.AbandonedError("asked to stop")

    def fail(self, step, metrics):
        raise OSError("killed")

    monkeypatch.setattr(
        evaluators, "run", lambda due, *others: (abandon if due[0].name == "val" else run_all)(due, *others)
    )
    with pytest.raises(preemption.PreemptedError, match="saved at step 3 of 6"):
        train(config, tmp_path, Lines())
    monkeypatch.setattr(evaluators, "run", run_all)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "evaluated", fail)
        with pytest.raises(OSError, match="killed"):
            train(config, tmp_path, Lines())
    assert 3 not in steps_with(tmp_path, "val")
    train(config, tmp_path, Lines())
    assert 3 in steps_with(tmp_path, "val")


def test_a_run_that_makes_up_for_its_last_evaluation_says_what_is_said_at_the_end(data_dir, tmp_path, monkeypatch):
    accuracies = iter([0.9, None, 0.1])

    def run(due, state, through=iter):
        accuracy = next(accuracies)
        if accuracy is None:
            raise preemption.AbandonedError("asked to stop")
        return {"val/accuracy": accuracy, "val/count": 8, "val/bad_images/empty": 2}

    monkeypatch.setattr(evaluators, "run", run)
    config, console = tiny(data_dir, total_steps=4, eval_steps=2), Lines()
    with pytest.raises(preemption.PreemptedError, match="saved at step 4 of 4"):
        train(config, tmp_path, Lines())
    train(config, tmp_path, console)
    assert "images that could not be used: in the last evaluation 2 empty" in console.kept
    assert "/checkpoints/2, not the last" in console.kept[-1]


def test_an_evaluator_added_to_a_finished_run_is_run_at_its_last_step(data_dir, tmp_path):
    train(tiny(data_dir), tmp_path, Lines())
    train(tiny(data_dir, {"often": NAMED["often"]}), tmp_path, Lines())
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert rows[-1]["often/count"] == 7
    assert rows[-1]["val/count"] == 8


@pytest.mark.parametrize(
    ("name", "own", "said"),
    [
        ("val", {"dataset": "d", "data_dir": "f"}, "config.input.dataset in config.input.data_dir"),
        ("fewshot", {"dataset": "d"}, "config.fewshot.dataset in config.input.data_dir"),
        ("v2", {"data_dir": "f"}, "config.input.dataset in config.evaluators.v2.data_dir"),
    ],
)
def test_a_message_names_the_settings_that_an_evaluator_has_of_its_own(name, own, said):
    settings = recipe.evaluator_settings("classification", **own)
    assert evaluators._in_own_names("config.input.dataset in config.input.data_dir", name, settings) == said
    of_labels = "config.input.label_key, config.input.max_labels"
    expected = of_labels.replace("config.input", said.partition(".dataset")[0])
    assert evaluators._in_own_names(of_labels, name, settings) == expected


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"dataset": "fractals/5x20x16", "split": "validation"},
            "config.evaluators.other: the model tells 4 classes apart, the data has 5",
        ),
        ({"split": "tset"}, "config.evaluators.other: split 'tset' of fractals/4x20x16"),
        ({"dataset": "imagenet_v2/matched-frequency"}, "config.evaluators.other: dataset imagenet_v2/matched-frequ"),
        ({"dataset": "nope"}, "config.evaluators.other: config.evaluators.other.dataset='nope': "),
        (
            {"kind": "few_shot", "dataset": "nope"},
            "config.evaluators.other: few-shot evaluation: config.evaluators.oth",
        ),
    ],
)
def test_data_that_cannot_be_used_is_one_line_at_the_start(data_dir, tmp_path, settings, line):
    config = tiny(data_dir, {"other": {"kind": "classification", **settings}})
    with pytest.raises(UserError) as caught:
        train(config, tmp_path, Lines())
    assert str(caught.value).startswith(line)
    assert not (tmp_path / "config.json").exists()


def test_a_new_kind_needs_an_entry_in_the_registry_alone(data_dir, tmp_path, monkeypatch):
    class Norm:
        """The sum of the squared head parameters, by hand."""

        num_examples, sources = 0, ()

        def __init__(self, settings, context):
            self.seen = (settings.split, context.model.num_classes)

        def __call__(self, params, through=iter):
            return {"squares": float((params["head"]["bias"] ** 2).sum()), "classes": self.seen[1]}

    monkeypatch.setitem(evaluators.KINDS, "norm", evaluators.Kind(Norm, averages_too=True))
    found = train(tiny(data_dir, {"head": {"kind": "norm"}}, ema_decay=0.5), tmp_path, Lines())
    assert found["head/classes"] == found["head_ema/classes"] == 4
    assert found["head/squares"] > found["head_ema/squares"] > 0
