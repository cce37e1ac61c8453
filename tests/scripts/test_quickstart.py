"""The picture of the tour shows what the numbers say: a small difference, the spread of the seeds, and chance."""

import json

import pytest

from mixer.runtime import preemption
from mixer.runtime.errors import UserError
from mixer.training.console import Console
from scripts import quickstart

ACCURACY = {  # of three seeds at steps 50 and 100
    "pre-trained": [(0.88, 0.935), (0.89, 0.939), (0.90, 0.943)],
    "from scratch": [(0.78, 0.911), (0.79, 0.917), (0.80, 0.923)],
}


def write_run(folder, classes, accuracies):
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"{number}\n" for number in range(classes)))
    lines = [
        {"step": 50 * (place + 1), "train/loss": 4.0 - place, "val/accuracy": accuracy}
        for place, accuracy in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def axes(tmp_path, monkeypatch):
    """The three parts of the picture, drawn of runs that are made up."""
    from matplotlib import pyplot as plt

    monkeypatch.setattr(quickstart, "FOLDER", tmp_path)
    monkeypatch.setattr(quickstart, "PRETRAINING", tmp_path / "fractals")
    write_run(tmp_path / "fractals", 64, [0.2, 0.64])
    for start, of_seeds in ACCURACY.items():
        for seed, accuracies in zip(quickstart.SEEDS, of_seeds, strict=True):
            write_run(quickstart._folder(start, seed), 10, accuracies)
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    quickstart._draw(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    monkeypatch.undo()
    yield drawn[0].axes
    plt.close(drawn[0])


def labels(part):
    return [text.get_text() for text in part.get_legend().get_texts()]


def test_a_difference_of_two_percent_is_seen(axes):
    bottom, top = axes[2].get_ylim()
    assert bottom < 78
    assert top > 94.3
    assert (93.9 - 91.7) / (top - bottom) > 0.1  # 0.02 on an axis from 0 to 100


def test_the_spread_of_the_seeds_is_drawn_and_written(axes):
    assert labels(axes[2]) == ["pre-trained: 93.9 +- 0.4", "from scratch: 91.7 +- 0.6", "chance: 10.0, far below"]
    bands = [sorted({round(y, 6) for _, y in band.get_paths()[0].vertices}) for band in axes[2].collections]
    assert bands == [[88.0, 90.0, 93.5, 94.3], [78.0, 80.0, 91.1, 92.3]]


def test_chance_is_drawn_where_it_is_near(axes):
    assert labels(axes[1]) == ["validation: 64.0", "chance: 1.6"]
    assert axes[1].get_ylim()[0] < 100 / 64
    assert list(axes[1].lines[1].get_ydata()) == [100 / 64, 100 / 64]
    assert not axes[1].collections


def test_runs_of_an_earlier_tour_are_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "FOLDER", tmp_path)

    def refuse(*_):
        raise UserError("it holds a run of another config")

    monkeypatch.setattr(quickstart, "train", refuse)
    with pytest.raises(UserError) as caught:
        quickstart._run(quickstart._config("fractals"), tmp_path / "fractals", Console(), preemption.Stop())
    told = f"it holds a run of another config; to begin the tour anew, delete {tmp_path}"
    assert str(caught.value) == told
