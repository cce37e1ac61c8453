"""The config in a run's folder."""

import json

import pytest

from mixer.config import checks, recipe, run_folder
from mixer.runtime import distributed, files
from mixer.runtime.errors import UserError


def test_a_config_comes_back_from_the_runs_folder(base_with, tmp_path):
    config = checks.checked(base_with(model__num_blocks=3, input__crop_area=(0.1, 0.9)))
    run_folder.save(config, ["cat", "dog"], tmp_path)
    loaded = run_folder.load_config(tmp_path)
    assert checks.flat(loaded) == checks.flat(config)
    assert (loaded.total_steps, loaded.total_epochs, loaded.init_from) == (None, 300.0, None)
    assert tuple(loaded.input.crop_area) == (0.1, 0.9)
    assert tuple(loaded.input.crop_aspect) == (0.75, 4 / 3)
    assert (tmp_path / run_folder.CLASSES_FILE).read_text() == "cat\ndog\n"
    json.loads((tmp_path / run_folder.CONFIG_FILE).read_text())
    run_folder.check_same(config, tmp_path)  # the same again is welcome


@pytest.mark.parametrize(("name", "value"), [("init_ema", True), ("resize", "interpolate")])
def test_nothing_allows_another_beginning(base_with, tmp_path, name, value):
    """tests/test_elastic.py has the others, in runs."""
    run_folder.save(checks.checked(base_with(init_from="a.npz")), ["cat", "dog"], tmp_path)
    other = checks.checked(base_with(init_from="a.npz", **{name: value}))
    with pytest.raises(UserError, match=rf"config\.{name}: .* now, but a run that continues has parameters and would"):
        run_folder.check_same(other, tmp_path, allow_change=True)


def test_every_difference_to_the_config_of_the_folder_is_listed(base_with, tmp_path):
    run_folder.save(checks.checked(recipe.base()), ["cat", "dog"], tmp_path)
    other = base_with(seed=1, optimizer__learning_rate=0.5, input__crop_area=(0.1, 1.0), model__num_blocks=3)
    with pytest.raises(UserError) as caught:
        run_folder.check_same(checks.checked(other), tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.partition("another config (")[2].partition(")")[0].split("; ") == [
        "input.crop_area: [0.05, 1.0] before, [0.1, 1.0] now",
        "model.num_blocks: None before, 3 now",
        "optimizer.learning_rate: 0.001 before, 0.5 now",
        "seed: 0 before, 1 now",
    ]
    assert run_folder.load_config(tmp_path).seed == 0


def test_what_changes_nothing_that_is_computed_may_change(base_with, tmp_path):
    run_folder.save(checks.checked(recipe.base()), ["cat", "dog"], tmp_path)
    other = base_with(
        log_steps=None, log_epochs=1.0, eval_epochs=1.0, checkpoint_steps=7, checkpoint__keep_last=9,
        profile_steps=3, input__data_dir="/data", input__max_bad_share=0.5, fewshot__dataset="cifar10",
        fewshot__shots=(2,), metrics__norms="updates", metrics__train_accuracy=False,
    )  # fmt: skip
    run_folder.check_same(checks.checked(other), tmp_path)
    run_folder.save(checks.checked(other), ["cat"], tmp_path)
    loaded = run_folder.load_config(tmp_path)
    assert (loaded.input.data_dir, loaded.checkpoint_steps, loaded.checkpoint.keep_last) == ("/data", 7, 9)


def test_every_process_tries_to_write(tmp_path, monkeypatch):
    """Each writes its part of a checkpoint, and may have mounted the folder in another way."""
    write = files.write_text

    def refuse(path, text):
        if path.name.endswith("-3"):
            raise PermissionError(13, "Permission denied", str(path))
        write(path, text)

    monkeypatch.setattr(files, "write_text", refuse)
    run_folder.make(tmp_path)
    monkeypatch.setattr(distributed, "processes", lambda: distributed.Processes(object(), 3, 4))
    with pytest.raises(UserError, match=r"cannot be written to .*Permission denied"):
        run_folder.make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_changes_a_line_of_the_log_changes_metrics():
    assert run_folder.changes_no_metric("checkpoint_steps: 5 before, 7 now")
    assert not run_folder.changes_no_metric("log_steps: 100 before, 50 now")


def test_the_classes_are_those_with_which_the_run_began(tmp_path):
    config = checks.checked(recipe.base())
    for names, anew, written in ((["a"], True, ["a"]), (["b"], False, ["a"]), (["c"], True, ["c"])):
        run_folder.save(config, names, tmp_path, anew=anew)
        assert run_folder.load_class_names(tmp_path) == written


def test_the_config_of_an_earlier_version_is_completed(base_with, tmp_path):
    config = checks.checked(base_with(seed=3, input__crop_area=(0.2, 1.0)))
    run_folder.save(config, ["cat"], tmp_path)
    written = json.loads((tmp_path / run_folder.CONFIG_FILE).read_text())
    del written["stem_init"], written["model"]["identity_init"], written["mixup"]
    written["of_a_fork"] = {"option": 1}
    (tmp_path / run_folder.CONFIG_FILE).write_text(json.dumps(written))
    found = run_folder.load_config(tmp_path)
    assert (found.stem_init, found.model.identity_init, found.mixup.p) == ("random", False, 0.0)
    assert (found.seed, found.input.crop_area, found.of_a_fork.option) == (3, (0.2, 1.0), 1)


@pytest.mark.parametrize("text", [None, "", "{", "[1, 2]", "3"])
def test_a_folder_without_a_config_is_refused(base_with, tmp_path, text):
    if text is not None:
        (tmp_path / run_folder.CONFIG_FILE).write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not the config of a run") as caught:
        run_folder.load_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_keeps_its_shuffle_block_where_its_data_moves(base_with, tmp_path):
    def decided(config, block, before):
        return run_folder.decided(config, before, {"input.shuffle_block": block})

    config = checks.checked(base_with(input__data_dir="gs://bucket/tfds"))
    assert decided(config, 1, {}).input.shuffle_block == 1
    new = decided(config, 16, {})
    assert (new.input.shuffle_block, new.is_locked, config.input.shuffle_block) == (16, True, 0)
    run_folder.save(new, ["cat"], tmp_path)
    moved = decided(checks.checked(base_with(input__data_dir="/disk")), 1, checks.flat(new))
    assert moved.input.shuffle_block == 16
    run_folder.check_same(moved, tmp_path)
    given = checks.checked(base_with(input__shuffle_block=4))
    assert decided(given, 1, checks.flat(new)) is given
    with pytest.raises(UserError, match=r"input\.shuffle_block: 16 before, 4 now"):
        run_folder.check_same(given, tmp_path)


def test_a_run_keeps_its_dtype_on_another_machine(base_with, tmp_path):
    config = checks.checked(base_with(model__dtype="auto", input__shuffle_block=1))
    new = run_folder.decided(config, {}, {"model.dtype": "bfloat16", "input.shuffle_block": 16})
    assert (new.model.dtype, new.input.shuffle_block, config.model.dtype) == ("bfloat16", 1, "auto")
    run_folder.save(new, ["cat"], tmp_path)
    elsewhere = run_folder.decided(config, checks.flat(new), {"model.dtype": "float32"})
    assert elsewhere.model.dtype == "bfloat16"
    assert run_folder.check_same(elsewhere, tmp_path) == []
    given = checks.checked(base_with(model__dtype="float32", input__shuffle_block=1))
    with pytest.raises(UserError, match=r"model\.dtype: 'bfloat16' before, 'float32' now"):
        run_folder.check_same(run_folder.decided(given, checks.flat(new), {"model.dtype": "bfloat16"}), tmp_path)


def test_a_beginning_that_was_allowed_and_not_read_may_be_mended(base_with, tmp_path):
    """Earlier versions took model.identity_init beside init_from."""
    run_folder.save(base_with(init_from="a.npz", model__identity_init=True), ["cat"], tmp_path)
    assert run_folder.check_same(checks.checked(base_with(init_from="a.npz")), tmp_path) == []
    with pytest.raises(UserError, match=r"config\.init_from: 'a\.npz' before, None now, but a run that continues"):
        run_folder.check_same(checks.checked(base_with()), tmp_path)


@pytest.mark.parametrize("name", ["lr=[0.1,0.2]", "a*", "a?b", "a\\b"])
def test_a_folder_whose_name_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    """Orbax does not find the arrays that it wrote there (orbax-checkpoint 0.12.8); TensorStore takes \\ for /."""
    with pytest.raises(UserError, match=r"orbax does not take . in the name of a folder as it is; give a folder whose"):
        run_folder.make(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_other_signs_in_the_name_of_a_folder_are_no_matter(tmp_path):
    assert run_folder.make(tmp_path / "{x}$HOME a#b%20'~ü").is_dir()
