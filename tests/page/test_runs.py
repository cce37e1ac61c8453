"""What the page says of runs, from their folders."""

import json
import os
import re

import numpy as np
import pytest

from mixer.config import recipe, run_folder
from mixer.page import runs, write
from mixer.runtime.errors import UserError
from mixer.training import history
from mixer.transfer.weights import Weights


def write_run(folder, lines, **settings):
    folder.mkdir(parents=True)
    config = recipe.base()
    config.update_from_flattened_dict({"input.dataset": "digits", **settings})
    (folder / "config.json").write_text(config.to_json())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def line(step, **metrics):
    return {"step": step, **{name.replace("__", "/"): value for name, value in metrics.items()}}


def test_shares_have_their_counts(tmp_path):
    lines = [line(10, val__accuracy=0.5, val__count=8, few__digits_5shot=0.25, few__digits_5shot_std=0.125)]
    rows = dict(runs.summary(runs.read([write_run(tmp_path / "a", lines)])))
    assert rows["val/accuracy"] == ["50.00% (4 of 8)"]
    assert rows["few/digits_5shot"] == ["25.00% ± 12.50%"]


def test_what_was_not_measured_is_no_number(tmp_path):
    lines = [line(1, train__device_wait_share=None, val__accuracy=0.5, val__count=8)]
    rows = dict(runs.summary(runs.read([write_run(tmp_path / "a", lines)])))
    assert rows["waiting for images, last"] == rows["images a second on each core, last"] == [""]
    rows = dict(runs.summary(runs.read([write_run(tmp_path / "b", [line(9, train__device_wait_share=0.125)])])))
    assert rows["waiting for images, last"] == ["12.5%"]


def test_steps_of_several_sizes_are_told_apart(tmp_path):
    folder = write_run(tmp_path / "a", [line(12)], batch_size=64)
    assert dict(runs.summary(runs.read([folder])))["steps"] == ["12 of 64 images"]
    for step, size in ((0, 32), (6, 64), (8, 64), (9, 32)):
        history.add(folder, history.Start(step, "", "", {}, {}, size, {}, {}, {}))
    assert dict(runs.summary(runs.read([folder])))["steps"] == ["12 of 32 and then 64 and then 32 images"]
    history.add(folder, history.Start(12, "", "", {}, {}, 16, {}, {}, {}))  # no step of it is in the metrics yet
    assert dict(runs.summary(runs.read([folder])))["steps"] == ["12 of 32 and then 64 and then 32 images"]


def test_folders_that_cannot_be_compared_are_refused(tmp_path):
    folder, diverged = write_run(tmp_path / "a", [line(1)]), write_run(tmp_path / "b", [])
    with pytest.raises(UserError, match=r"^--workdir: .*/a is given twice$"):
        runs.read([folder, f"{folder}/"])
    with pytest.raises(UserError, match=r"/b has no metrics: the run has not logged a step yet$"):
        runs.read([diverged])
    (tmp_path / "b" / run_folder.DIVERGED_FILE).write_text("loss is not finite\n")
    assert "ended early" not in dict(runs.summary(runs.read([folder])))
    (tmp_path / "a" / run_folder.DIVERGED_FILE).write_text("loss is not finite\n")
    assert dict(runs.summary(runs.read([folder])))["ended early"] == ["loss is not finite"]
    with pytest.raises(UserError, match=r"/b has no metrics: loss is not finite$"):
        runs.read([folder, diverged])


def test_images_without_a_label_do_not_count_for_accuracy(tmp_path):
    lines = [line(10, val__accuracy=0.5, val__count=8, val__labelled=6)]
    assert dict(runs.summary(runs.read([write_run(tmp_path / "a", lines)])))["val/accuracy"] == ["50.00% (3 of 6)"]


def test_the_names_of_runs_are_as_short_as_they_differ(tmp_path):
    folders = [write_run(tmp_path / name, [line(1)]) for name in ("cifar/a", "cifar/b", "digits/a")]
    assert [run.name for run in runs.read(folders)] == ["cifar/a", "cifar/b", "digits/a"]
    assert [run.name for run in runs.read(folders[:2])] == ["a", "b"]
    assert [run.name for run in runs.read(folders[:1])] == ["a"]
    assert [run.name for run in runs.read([f"{folders[0]}/"])] == ["a"]
    relative = os.path.relpath(folders[1])
    assert [run.name for run in runs.read([str(folders[0]), relative])] == [str(folders[0]), relative]
    for parent in ("gs://bucket/runs", "./runs", "../runs//all"):
        assert runs._short([f"{parent}/a", f"{parent}/b/"]) == ["a", "b"]


def test_settings_that_differ_are_shown_and_no_others(tmp_path):
    found = runs.read([write_run(tmp_path / "a", [line(1)], seed=1), write_run(tmp_path / "b", [line(1)], seed=2)])
    assert runs.differences(found) == [("seed", ["1", "2"])]
    assert ("seed", "1") in runs.settings(found[0])


def test_a_long_curve_keeps_its_ends_and_leaves_out_what_was_not_finite(tmp_path):
    values = {step: float(step) for step in range(1, 2001)}
    lines = [line(step, train__loss=value) for step, value in values.items()]
    lines[99] = line(100, train__loss=None)
    (chart,) = runs.charts(runs.read([write_run(tmp_path / "a", lines)]))
    (curve,) = chart["curves"]
    assert (curve["x"][0], curve["x"][-1]) == (1, 2000)
    assert 300 < len(curve["x"]) <= 401
    assert np.all(np.diff(curve["x"]) > 0)
    assert list(curve["x"]) == curve["y"]


def test_only_the_curve_of_mixed_images_is_called_so(tmp_path):
    mixed = [line(1, train__mixed_accuracy=0.25, val__accuracy=0.5)]
    plain = [line(1, train__accuracy=0.25, val__accuracy=0.5)]
    (chart,) = runs.charts(runs.read([write_run(tmp_path / "a", mixed), write_run(tmp_path / "b", plain)]))
    assert chart["note"] == ""
    assert [curve["name"] for curve in chart["curves"]] == [
        "a: train, on mixed images", "a: val", "b: train", "b: val",
    ]  # fmt: skip


def test_a_run_of_another_version_is_told_as_elsewhere(tmp_path):
    folder = write_run(tmp_path / "a", [line(1)])
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["model"]["gates"] = 2
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as told:
        runs.read([folder])
    of_weights = Weights({}, folder, config=run_folder.load_config(folder))
    with pytest.raises(UserError) as elsewhere:
        of_weights.model()
    assert str(told.value) == str(elsewhere.value)
    assert str(told.value).startswith(
        f"{folder} is a run of another version of this project: model variant 'B/16' has "
    )


def test_unusable_images_are_shown_by_kind(tmp_path):
    lines = [{"step": 1, "train/loss": 1.0, "train/bad_images/truncated": 3, "val/unreadable": 0}]
    found = runs.read([write_run(tmp_path / "a", lines), write_run(tmp_path / "b", [line(1, train__loss=1.0)])])
    assert runs.bad_images(found) == [("train/bad_images/truncated", ["3", "0"])]
    found = runs.read([str(tmp_path / "a"), write_run(tmp_path / "c", [{"step": 1, "val/count": 8}])])
    assert runs.bad_images(found) == [("train/bad_images/truncated", ["3", ""])]


def test_unusable_images_of_an_evaluator_are_those_of_its_last_line_and_none_where_it_has_none(tmp_path):
    of_val = [{"val/bad_images/blank": 3, "val/unreadable": 3, "val/count": 7}, {"val/unreadable": 1, "val/count": 9}]
    lines = [{"step": step + 1, **values} for step, values in enumerate(of_val)]
    found = runs.read([
        write_run(tmp_path / "a", [*lines, {"step": 3, "valid/count": 8}]),
        write_run(tmp_path / "b", [{"step": 1, "val/count": 10, "val/unreadable": 0}]),
        write_run(tmp_path / "c", [{"step": 1, "train/loss": 1.0}]),
    ])  # fmt: skip
    assert runs.bad_images(found) == [("val/unreadable", ["1", "0", ""])]


def test_no_text_of_a_run_can_become_part_of_the_page(tmp_path):
    """Names of classes, folders and commands are shown as they are."""
    lines = [line(1, train__loss=1.0)]
    (run,) = runs.read([write_run(tmp_path / "<b>a</b>", lines, **{"input.train_split": "</script><i>"})])
    text = write.page(
        [run], [write.Evaluated(missing="<u>why")], model=None, no_model="", pictures={"labels": ["</script>"]},
        command="<s>",
    )  # fmt: skip
    for tag in ("<b>", "<i>", "<u>", "<s>"):
        assert tag not in text
    assert text.count("</script>") == 2


@pytest.mark.parametrize(
    ("right", "headings"),
    [
        ([True, False, None, True], [("wrong", 1), ("right", 2), ("without a label", 1)]),
        ([None, None], [("without a label", 2)]),
    ],
)
def test_predictions_are_wrong_right_or_without_a_label(tmp_path, right, headings):
    (run,) = runs.read([write_run(tmp_path / "a", [line(1, train__loss=1.0)])])
    pictures = [
        {"source": "data:,", "guess": "cat", "share": 0.5, "label": "" if one is None else "dog", "right": one}
        for one in right
    ]
    text = write.page(
        [run], [write.Evaluated(predictions=pictures)], model=None, no_model="", pictures={"labels": []}, command="c"
    )
    found = re.findall(r"<summary>(\d+) (wrong|right|without a label)</summary>", text)
    assert [(title, int(count)) for count, title in found] == headings
    assert len(re.findall(r"<br>it is dog", text)) == right.count(False)


@pytest.mark.parametrize("files", [[], ["config.json"]])
def test_what_is_no_run_is_told(tmp_path, files):
    folder = write_run(tmp_path / "a", [])
    for name in ("config.json", "metrics.jsonl"):
        if name not in files:
            (tmp_path / "a" / name).unlink()
    with pytest.raises(UserError, match="not the config of a run" if not files else "has no metrics: the run has not"):
        runs.read([folder])
