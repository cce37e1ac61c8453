"""The runs of a sweep: which learning rate is chosen, what each run is made of, and what is done only once."""

import dataclasses
import json
import math
import pathlib
import shutil

import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags
from random_models import make_params
from tiny_sweep import TINY, write_cifar10

from mixer import models, series, sweep_runs
from mixer.config import checks, command_line, paper, recipe, run_folder, tasks
from mixer.runtime import preemption
from mixer.runtime.errors import DivergedError, UserError
from mixer.sweep_runs import choose
from mixer.training import history
from mixer.transfer import init_from, npz, sweep_results

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return write_cifar10(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("grid", "chosen"),
    [
        ({0.003: 0.1, 0.01: 0.3, 0.03: 0.2}, 0.01),
        ({0.003: 0.1, 0.03: 0.3, 0.01: 0.3}, 0.01),  # a tie: the smaller
        ({0.003: 0.1, 0.01: None}, 0.003),
        ({0.003: None, 0.01: 0.0}, 0.01),  # what diverged is worse than what knows nothing
        ({0.003: None, 0.01: None}, None),
    ],
    ids=str,
)
def test_the_choice_of_a_learning_rate(grid, chosen):
    assert choose(grid) == chosen


CLASSES = [str(number) for number in range(10)]  # as TFDS has them of data that it did not build


def make_sweep(data_dir, workdir, rates=(0.01, 0.03), seeds=1, **overrides) -> sweep_runs.Sweep:
    settings = {**TINY, "input.data_dir": data_dir, **overrides}
    spec = str(ROOT / "configs" / "finetune.py:model=s16,size=32")
    return sweep_runs.Sweep(spec, settings, {"cifar10": rates}, seeds, workdir)


def keep(config, workdir, accuracy: float) -> dict[str, float]:
    """Leaves in the folder what a run leaves there, as far as the sweep reads it."""
    workdir.mkdir(parents=True, exist_ok=True)
    decided = run_folder.decided(config, {}, {"input.shuffle_block": 1, "model.dtype": "float32"})
    run_folder.save(decided, CLASSES, workdir)
    if math.isnan(accuracy):
        raise DivergedError("loss or gradient is not finite at step 3 (loss nan): the run stops")
    result = {"step": config.total_steps, "val/accuracy": accuracy, "val/count": 50}
    (workdir / "metrics.jsonl").write_text(json.dumps(result) + "\n")
    return result


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("multi_label", [False, True])
def test_runs_are_compared_by_the_metric_that_ranks_their_checkpoints(ema_decay, multi_label, tmp_path):
    config = recipe.base()
    config.ema_decay = ema_decay
    data = series.Data(9, ["a", "b"], multi_label, {})
    run = series.PlannedRun("", epath.Path(tmp_path), checks.checked(config), data)
    expected = "mean_average_precision" if multi_label else "accuracy"
    assert run.metric == f"{'val_ema' if ema_decay else 'val'}/{expected}"


def test_every_run_has_its_config(data_dir, tmp_path, monkeypatch):
    """Grid runs on the dev split, then the best rate on the test split; the rest is the recipe's and the user's."""
    seen = {}

    def fake_train(config, workdir, console, stop):
        seen[workdir.name] = config
        return {"val/accuracy": {0.01: 0.2, 0.03: 0.4, 0.06: 0.4}[config.optimizer.learning_rate], "val/count": 50}

    monkeypatch.setattr(series, "train", fake_train)
    ((name, found),) = make_sweep(data_dir, tmp_path, rates=(0.06, 0.03, 0.01), label_smoothing=0.5).outcomes()
    assert (name, found.chosen, found.seeds) == ("cifar10", 0.03, [0.4])
    assert found.grid == {0.01: 0.2, 0.03: 0.4, 0.06: 0.4}
    assert list(seen) == ["lr_0.01", "lr_0.03", "lr_0.06", "lr_0.03_seed_0"]
    row = tasks.TASKS["cifar10"]
    for folder, config in seen.items():
        expected = (row.train, row.test) if folder.endswith("_seed_0") else (row.sweep_train, row.sweep_dev)
        assert (config.input.train_split, config.input.eval_split) == expected
        assert (config.optimizer.name, config.total_steps, config.label_smoothing) == ("momentum", 4, 0.5)
        assert config.is_locked


def test_values_are_read_as_in_other_commands(data_dir, tmp_path, monkeypatch):
    """Names joined by commas, None, and a path in a home folder, which a config file may have too."""
    home = pathlib.Path(data_dir)
    monkeypatch.setenv("HOME", str(home.parent))
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import finetune\n"
        "def get_config(arguments):\n"
        "    config = finetune.get_config(arguments)\n"
        f"    config.input.data_dir = '~/{home.name}'\n"
        "    return config\n"
    )
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    argv = [
        "train", f"--config={file}:model=s16,size=32,task=cifar10", "--config.metrics.writers=tensorboard,wandb",
        "--config.init_from=None", "--config.total_steps=4", "--config.warmup_steps=0",
        "--config.input.eval_resize=None",
    ]  # fmt: skip
    config_flags.DEFINE_config_file("config", None, "", flag_values=flags.FLAGS, sys_argv=argv)
    command_line.parse_flags(argv)
    overrides = dict(config_flags.get_override_values(flags.FLAGS["config"]))
    expected, _ = command_line.from_flags()
    sweep = sweep_runs.Sweep(f"{file}:model=s16,size=32", overrides, {"cifar10": (0.01,)}, 1, tmp_path)
    found = sweep._config("cifar10", 0.01, 0, dev=False)
    assert found.metrics.writers == expected.metrics.writers == ("tensorboard", "wandb")
    assert found.init_from is expected.init_from is None
    assert found.input.data_dir == expected.input.data_dir == data_dir
    assert found.total_steps == expected.total_steps == 4


def test_a_single_learning_rate_is_not_chosen(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(series, "train", lambda *_: {"val/accuracy": 0.5, "val/count": 50})
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,)).outcomes()
    assert (found.grid, found.dev_count, found.chosen, found.count) == ({}, None, 0.02, 50)


def test_where_every_learning_rate_diverges_the_sweep_ends(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(series, "train", lambda config, workdir, *_: keep(config, workdir, math.nan))
    with pytest.raises(UserError, match="cifar10: the loss was not finite with any learning rate; give lower"):
        list(make_sweep(data_dir, tmp_path).outcomes())


def test_a_final_run_that_diverges_is_recorded_and_the_sweep_goes_on(data_dir, tmp_path, monkeypatch, capsys):
    accuracies = [0.5, math.nan, 0.7]
    monkeypatch.setattr(series, "train", lambda config, workdir, *_: keep(config, workdir, accuracies[config.seed]))
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=3).outcomes()
    assert (found.seeds, found.mean, found.count) == ([0.5, None, 0.7], pytest.approx(0.6), 50)
    assert "[2/3] cifar10, learning rate 0.02, seed 1  diverged: the loss is not finite" in capsys.readouterr().out

    monkeypatch.setattr(series, "train", None)  # nothing runs again
    assert list(make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=3).outcomes()) == [("cifar10", found)]
    assert "[2/3] cifar10, learning rate 0.02, seed 1  diverged before" in capsys.readouterr().out

    made_by = {"device": "1 x cpu", "versions": {"jax": "0"}, "command": "python"}
    made_by |= {"eval_crop": "resize_square", "averaged": True}
    sweep_results.write(epath.Path(tmp_path), {"cifar10": found}, paper.find("H/14", "jft", 448), made_by)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tasks"]["cifar10"]["seeds"] == [0.5, None, 0.7]
    assert (results["eval_crop"], results["paper"]["eval_crop"]) == ("resize_square", "resize_square")
    text = (tmp_path / "results.md").read_text()
    assert "| cifar10 | 60.00 | 14.14 | 2 (1 diverged) | 50 |" in text
    assert "in per cent of the averaged parameters, evaluated" in text
    assert sweep_results.other_tasks(epath.Path(tmp_path), ["cifar100"]) == ["cifar10"]
    assert sweep_results.other_tasks(epath.Path(tmp_path), ["cifar100", "cifar10"]) == []
    assert sweep_results.other_tasks(epath.Path(tmp_path) / "missing", ["cifar100"]) == []


def test_a_run_that_diverged_is_tried_again_if_more_steps_may_be_skipped(data_dir, tmp_path, monkeypatch):
    accuracies, steps_after = {0: math.nan, 9: 0.6}, []

    def fake_train(config, workdir, console, *_):
        steps_after.append(console._steps_after)
        return keep(config, workdir, accuracies[config.max_nonfinite_steps])

    monkeypatch.setattr(series, "train", fake_train)
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=2).outcomes()
    assert (found.seeds, steps_after) == ([None, None], [4, 0])  # two runs of four steps, so far as one knows
    for _ in range(2):
        ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=2, max_nonfinite_steps=9).outcomes()
        assert (found.seeds, len(steps_after)) == ([0.6, 0.6], 4)


def test_a_warm_up_that_is_longer_than_a_run_is_told_before_any_runs(data_dir, tmp_path):
    with pytest.raises(UserError, match="warm-up takes 10 steps and the run 4, so the learning rate would end at"):
        make_sweep(data_dir, tmp_path, warmup_steps=10)


def test_where_every_seed_diverges_there_is_no_accuracy(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(series, "train", lambda config, workdir, *_: keep(config, workdir, math.nan))
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=2).outcomes()
    assert (found.seeds, found.mean, found.count) == ([None, None], None, None)


def test_a_longer_grid_whose_winner_is_another_runs_only_what_is_new(data_dir, tmp_path, monkeypatch):
    ran = []

    def fake_train(config, workdir, console, stop):
        ran.append(workdir.name)
        return keep(config, workdir, config.optimizer.learning_rate)  # the highest is the best

    monkeypatch.setattr(series, "train", fake_train)
    ((_, found),) = make_sweep(data_dir, tmp_path).outcomes()
    assert (found.chosen, ran) == (0.03, ["lr_0.01", "lr_0.03", "lr_0.03_seed_0"])
    ran.clear()
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.01, 0.03, 0.06)).outcomes()
    assert (found.chosen, found.seeds, ran) == (0.06, [0.06], ["lr_0.06", "lr_0.06_seed_0"])
    ran.clear()
    ((_, found),) = make_sweep(data_dir, tmp_path).outcomes()
    assert (found.chosen, found.seeds, ran) == (0.03, [0.03], [])


def test_runs_from_other_weights_under_the_same_name_are_not_mixed(data_dir, tmp_path, monkeypatch):
    weights = tmp_path / "start.npz"

    def start_from(seed):
        model = models.create("S/16", 0, num_blocks=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)
        with weights.open("wb") as file:
            npz.save_params(file, make_params(model, 32, seed=seed))

    def fake_train(config, workdir, console, stop):
        noted = init_from.noted(init_from.loaded(config))
        result = keep(config, workdir, config.optimizer.learning_rate)
        history.add(workdir, history.Start(0, "", "", {}, {}, 8, {}, {}, {}, weights=noted))
        return result

    monkeypatch.setattr(series, "train", fake_train)
    start_from(seed=0)
    options = {"init_from": str(weights), "model.tokens_mlp_dim": 4}
    ((_, found),) = make_sweep(data_dir, tmp_path / "sweep", **options).outcomes()
    assert found.seeds == [0.03]
    ((_, found),) = make_sweep(data_dir, tmp_path / "sweep", seeds=2, **options).outcomes()
    assert found.seeds == [0.03, 0.03]
    start_from(seed=1)
    ((_, found),) = make_sweep(data_dir, tmp_path / "sweep", seeds=2, **options).outcomes()  # nothing is left to train
    with pytest.raises(UserError, match=r"holds other weights for .*lr_0.03_seed_2 than .*lr_0.01 began from: give"):
        list(make_sweep(data_dir, tmp_path / "sweep", seeds=3, **options).outcomes())

    # Nor are they where the file changes while the sweep runs, or before a run that comes first among those to train.
    def then_another(*arguments):
        result = fake_train(*arguments)
        start_from(seed=2)
        return result

    with pytest.raises(UserError, match=r"holds other weights for .*lr_0.005 than .*lr_0.01 began from: give"):
        list(make_sweep(data_dir, tmp_path / "sweep", rates=(0.005, 0.01, 0.03), **options).outcomes())
    assert not (tmp_path / "sweep" / "cifar10" / "lr_0.005").exists()
    monkeypatch.setattr(series, "train", then_another)
    with pytest.raises(UserError, match=r"holds other weights for .*lr_0.03 than .*lr_0.01 began from: give"):
        list(make_sweep(data_dir, tmp_path / "fresh", **options).outcomes())
    monkeypatch.setattr(series, "train", fake_train)

    # An attempt that saved nothing does not count: it began from the weights of before.
    attempt = tmp_path / "anew" / "cifar10" / "lr_0.02_seed_0"
    attempt.mkdir(parents=True)
    shutil.copy(tmp_path / "sweep" / "cifar10" / "lr_0.01" / history.FILE, attempt)
    monkeypatch.setattr(series, "train", lambda config, folder, *of: fake_train(config, folder / "now", *of))
    ((_, found),) = make_sweep(data_dir, tmp_path / "anew", rates=(0.02,), seeds=2, **options).outcomes()
    assert found.seeds == [0.02, 0.02]


def test_all_runs_of_a_sweep_have_one_dtype(data_dir, tmp_path, monkeypatch):
    """Also if it goes on where `model.dtype=auto` means another one."""
    dtypes = {}

    def train_on(machine):
        def fake_train(config, workdir, console, stop):
            dtypes[str(workdir.relative_to(tmp_path))] = config.model.dtype
            decided = run_folder.decided(config, {}, {"model.dtype": machine})
            return keep(decided, workdir, config.optimizer.learning_rate)

        return fake_train

    options = {"model.dtype": "auto"}
    monkeypatch.setattr(series, "train", train_on("bfloat16"))
    list(make_sweep(data_dir, tmp_path, rates=(0.01,), **options).outcomes())
    monkeypatch.setattr(series, "train", train_on("float32"))
    list(make_sweep(data_dir, tmp_path, rates=(0.001, 0.01), seeds=2, **options).outcomes())
    assert dtypes.pop("cifar10/lr_0.01_seed_0") == "auto"
    assert set(dtypes) == {f"cifar10/lr_{name}" for name in ("0.001", "0.01", "0.01_seed_1")}
    assert set(dtypes.values()) == {"bfloat16"}


def test_runs_on_other_data_are_not_mixed(data_dir, tmp_path, monkeypatch):
    """Their config is the same: the folder of the data has been prepared anew, or is another."""
    noted = {}

    def fake_train(config, workdir, console, stop):
        result = keep(config, workdir, 0.5)
        data = series.opened(config, tmp_path / "cache").facts
        noted[workdir.name] = history.Start(0, "", "", {}, {}, 8, {}, {}, dict(data))
        history.add(workdir, noted[workdir.name])
        return result

    monkeypatch.setattr(series, "train", fake_train)
    list(make_sweep(data_dir, tmp_path).outcomes())
    make_sweep(data_dir, tmp_path, seeds=2)
    name = "the number of examples of the data of evaluator val (cifar10 test)"
    assert noted["lr_0.01_seed_0"].data[name] == "50"
    other = dataclasses.replace(noted["lr_0.01_seed_0"], data={**noted["lr_0.01_seed_0"].data, name: "25"})
    history.add(tmp_path / "cifar10" / "lr_0.01_seed_0", other)
    with pytest.raises(UserError, match=r"lr_0.01_seed_0 holds a run on other data \(.*25 before, 50 now\): give"):
        make_sweep(data_dir, tmp_path, seeds=2)


def test_the_averaged_parameters_count_where_there_are_any(data_dir, tmp_path, monkeypatch, capsys):
    def fake_train(config, workdir, *_):
        rate = config.optimizer.learning_rate
        return keep(config, workdir, 1 - rate) | {"val_ema/accuracy": rate}

    monkeypatch.setattr(series, "train", fake_train)
    ((_, found),) = make_sweep(data_dir, tmp_path, ema_decay=0.9).outcomes()
    assert (found.chosen, found.grid, found.seeds) == (0.03, {0.01: 0.01, 0.03: 0.03}, [0.03])


def test_a_run_whose_checkpoints_are_gone_is_still_that_of_its_config(data_dir, tmp_path):
    sweep = make_sweep(data_dir, tmp_path, rates=(0.02,))
    (run,) = sweep._final_runs("cifar10", 0.02)
    keep(run.config, run.folder, 0.7)
    with pytest.raises(UserError, match=r"\(total_steps: 4 before, 3 now\): give another folder for it$"):
        make_sweep(data_dir, tmp_path, rates=(0.02,), total_steps=3)


@pytest.mark.parametrize("found", ["2", "4.orbax-checkpoint-tmp"], ids=["an earlier one", "a part of it"])
def test_a_run_whose_last_checkpoint_was_not_saved_is_not_done(data_dir, tmp_path, monkeypatch, found):
    """Its metrics are written first."""
    ran = []

    def fake_train(config, workdir, *_):
        ran.append(workdir.name)
        (workdir / "checkpoints" / found).rename(workdir / "checkpoints" / "4")
        return {"val/accuracy": 0.5, "val/count": 50}

    monkeypatch.setattr(series, "train", fake_train)
    sweep = make_sweep(data_dir, tmp_path, rates=(0.02,))
    (run,) = sweep._final_runs("cifar10", 0.02)
    keep(run.config, run.folder, 0.7)
    assert run.result()["val/accuracy"] == 0.7  # somebody has deleted its checkpoints
    (run.folder / "checkpoints" / found).mkdir(parents=True)
    assert run.result() is None
    list(sweep.outcomes())
    assert ran == ["lr_0.02_seed_0"]
    assert run.result()["val/accuracy"] == 0.7


def test_a_run_without_an_accuracy_did_not_diverge(data_dir, tmp_path, monkeypatch):
    """As on a test split whose labels are not public."""
    monkeypatch.setattr(series, "train", lambda *_: {"val/count": 50, "val/labelled": 0})
    said = r"^cifar10, learning rate 0.01: no image of cifar10 .* has a label, so there is no val/accuracy: evaluate on"
    with pytest.raises(UserError, match=said):
        list(make_sweep(data_dir, tmp_path).outcomes())
    monkeypatch.setattr(series.PlannedRun, "result", lambda run: {"val/count": 50, "val/labelled": 0})
    with pytest.raises(UserError, match=said):  # done before
        list(make_sweep(data_dir, tmp_path).outcomes())


def test_any_other_error_of_a_run_ends_the_sweep(data_dir, tmp_path, monkeypatch):
    def fake_train(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(series, "train", fake_train)
    with pytest.raises(UserError, match=r"^cifar10, learning rate 0.01: the disk is full$"):
        list(make_sweep(data_dir, tmp_path).outcomes())


def test_a_sweep_that_is_asked_to_stop_saves_its_run_and_continues_it(data_dir, tmp_path, capsys):
    stopped = make_sweep(data_dir, tmp_path, rates=(0.02,))
    stopped._stop = preemption.Stop(after=2)
    with pytest.raises(preemption.PreemptedError, match="saved at step 2 of 4"):
        list(stopped.outcomes())
    assert not stopped._stop._has_work_to_save
    list(make_sweep(data_dir, tmp_path, rates=(0.02,)).outcomes())
    assert "continuing from step 2" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["lr_0.03", "lr_0.03_seed_0"])
def test_the_folder_of_another_sweep_is_refused_before_anything_runs(data_dir, tmp_path, folder):
    config = recipe.finetune("S/16", tasks.TASKS["cifar10"], 32)
    (tmp_path / "cifar10" / folder).mkdir(parents=True)
    run_folder.save(checks.checked(config), ["a", "b"], tmp_path / "cifar10" / folder)
    make_sweep(data_dir, tmp_path)  # it has no checkpoint, so it may begin anew
    (tmp_path / "cifar10" / folder / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{folder} holds a run of another config \(.*batch_size: 512 before, 16 now"):
        make_sweep(data_dir, tmp_path)


def test_data_that_is_missing_is_found_before_the_first_tasks_runs(data_dir, tmp_path):
    settings = {**TINY, "input.data_dir": data_dir}
    rates = {"cifar10": [0.01], "oxford_iiit_pet": [0.01]}
    with pytest.raises(UserError, match=r"dataset oxford_iiit_pet in .* is not prepared"):
        sweep_runs.Sweep(str(ROOT / "configs" / "finetune.py"), settings, rates, 1, tmp_path)


def test_a_config_file_that_makes_the_same_of_every_task_is_refused(data_dir, tmp_path):
    file = tmp_path / "deaf.py"
    file.write_text("from mixer import recipe\n\ndef get_config(arguments):\n    return recipe.base()\n")
    with pytest.raises(UserError, match=r"deaf.py ignores its argument task=cifar10; give configs/finetune.py"):
        sweep_runs.Sweep(str(file), {"input.data_dir": data_dir}, {"cifar10": [0.01]}, 1, tmp_path / "runs")
