"""The paper's tables: every number, and beside it what runs measured and pre-flight estimates, in its row."""

import importlib.util
import json

import pytest
from etils import epath

from mixer.config import checks, config_file, durations, paper, recipe, run_folder, tasks
from mixer.performance import data_facts
from mixer.training import history
from mixer.transfer import sweep_results
from scripts import paper_table

# The tables as the paper has them: pixels, epochs (Table 3), ImageNet, ReaL, Avg 5, VTAB (Table 2), images/s/core, and
# core-days in thousands.
TABLE_2 = """
ImageNet-21k | HaloNet-H4 | | 85.8 | - | - | - | 120 | 0.10
ImageNet-21k | Mixer-L/16 | 448 | 84.15 | 87.86 | 93.91 | 74.95 | 105 | 0.41
ImageNet-21k | ViT-L/16 | | 85.30 | 88.62 | 94.39 | 72.72 | 32 | 0.18
ImageNet-21k | BiT-R152x4 | | 85.39 | - | 94.04 | 70.64 | 26 | 0.94
JFT-300M | NFNet-F4+ | | 89.2 | - | - | - | 46 | 1.86
JFT-300M | Mixer-H/14 | 448 | 87.94 | 90.18 | 95.71 | 75.33 | 40 | 1.01
JFT-300M | BiT-R152x4 | | 87.54 | 90.54 | 95.33 | 76.29 | 26 | 9.90
JFT-300M | ViT-H/14 | | 88.55 | 90.72 | 95.97 | 77.63 | 15 | 2.30
weak labels | MPL | | 90.0 | 91.12 | - | - | - | 20.48
weak labels | ALIGN | | 88.64 | - | - | 79.99 | 15 | 14.82
"""
TABLE_3 = """
ImageNet-1k | Mixer-B/16 | 224 | 300 | 76.44 | 82.36 | 88.33 | 1384 | 0.01
ImageNet-1k | ViT-B/16 | 224 | 300 | 79.67 | 84.97 | 90.79 | 861 | 0.02
ImageNet-1k | Mixer-L/16 | 224 | 300 | 71.76 | 77.08 | 87.25 | 419 | 0.04
ImageNet-1k | ViT-L/16 | 224 | 300 | 76.11 | 80.93 | 89.66 | 280 | 0.05
ImageNet-21k | Mixer-B/16 | 224 | 300 | 80.64 | 85.80 | 92.50 | 1384 | 0.15
ImageNet-21k | ViT-B/16 | 224 | 300 | 84.59 | 88.93 | 94.16 | 861 | 0.18
ImageNet-21k | Mixer-L/16 | 224 | 300 | 82.89 | 87.54 | 93.63 | 419 | 0.41
ImageNet-21k | ViT-L/16 | 224 | 300 | 84.46 | 88.35 | 94.49 | 280 | 0.55
ImageNet-21k | Mixer-L/16 | 448 | 300 | 83.91 | 87.75 | 93.86 | 105 | 0.41
JFT-300M | Mixer-S/32 | 224 | 5 | 68.70 | 75.83 | 87.13 | 11489 | 0.01
JFT-300M | Mixer-B/32 | 224 | 7 | 75.53 | 81.94 | 90.99 | 4208 | 0.05
JFT-300M | Mixer-S/16 | 224 | 5 | 73.83 | 80.60 | 89.50 | 3994 | 0.03
JFT-300M | BiT-R50x1 | 224 | 7 | 73.69 | 81.92 | - | 2159 | 0.08
JFT-300M | Mixer-B/16 | 224 | 7 | 80.00 | 85.56 | 92.60 | 1384 | 0.08
JFT-300M | Mixer-L/32 | 224 | 7 | 80.67 | 85.62 | 93.24 | 1314 | 0.12
JFT-300M | BiT-R152x1 | 224 | 7 | 79.12 | 86.12 | - | 932 | 0.14
JFT-300M | BiT-R50x2 | 224 | 7 | 78.92 | 86.06 | - | 890 | 0.14
JFT-300M | BiT-R152x2 | 224 | 14 | 83.34 | 88.90 | - | 356 | 0.58
JFT-300M | Mixer-L/16 | 224 | 7 | 84.05 | 88.14 | 94.51 | 419 | 0.23
JFT-300M | Mixer-L/16 | 224 | 14 | 84.82 | 88.48 | 94.77 | 419 | 0.45
JFT-300M | ViT-L/16 | 224 | 14 | 85.63 | 89.16 | 95.21 | 280 | 0.65
JFT-300M | Mixer-H/14 | 224 | 14 | 86.32 | 89.14 | 95.49 | 194 | 1.01
JFT-300M | BiT-R200x3 | 224 | 14 | 84.73 | 89.58 | - | 141 | 1.78
JFT-300M | Mixer-L/16 | 448 | 14 | 86.78 | 89.72 | 95.13 | 105 | 0.45
JFT-300M | ViT-H/14 | 224 | 14 | 86.65 | 89.56 | 95.57 | 87 | 2.30
JFT-300M | ViT-L/16 | 512 | 14 | 87.76 | 90.54 | 95.63 | 32 | 0.65
"""
CONFIGS = {
    "ImageNet-1k": ["b16_i1k", "l16_i1k"],
    "ImageNet-21k": ["b16_i21k", "l16_i21k", "l16_i21k"],
    "JFT-300M": [
        "s32_jft", "b32_jft", "s16_jft", "b16_jft", "l32_jft", "l16_jft total_epochs=7", "l16_jft", "h14_jft",
        "l16_jft",
    ],
}  # fmt: skip


def printed(capsys, *arguments):
    """Runs the script. Returns the rows of Tables 2 and 3 by their heads, and the lines below."""
    assert paper_table.main([*map(str, arguments), "--markdown"]) == 0
    tables, told = {}, []
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("###"):
            rows = tables.setdefault(line.split()[2].rstrip(","), [])
            heads = None
        elif line.startswith("| --"):
            continue
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if heads is None:
                heads = cells
            else:
                rows.append(dict(zip(heads, cells, strict=True)))
        elif line:
            told.append(line.removeprefix("- "))
    return tables, told


def the_row(tables, table, model, data, px, epochs="300"):
    (row,) = (
        row
        for row in tables[table]
        if (row["model"], row["pre-training"], row["px"], row["epochs"]) == (f"Mixer-{model}", data, px, epochs)
    )
    return row


def numbers(text):
    return None if text in ("-", "") else float(text.replace(",", ""))


@pytest.mark.parametrize(
    ("table", "typed", "heads"),
    [
        ("2", TABLE_2, "px|ImageNet, paper|ReaL, paper|Avg 5, paper|VTAB, paper|inference, paper|core-days, paper"),
        ("3", TABLE_3, "px|epochs|ImageNet, paper|ReaL, paper|Avg 5, paper|inference, paper|core-days, paper"),
    ],
)
def test_every_number_of_the_paper(capsys, table, typed, heads):
    tables, _ = printed(capsys)
    expected = [[cell.strip() for cell in line.split("|")] for line in typed.strip().splitlines()]
    rows = tables[table]
    assert [[row["pre-training"], row["model"]] for row in rows] == [line[:2] for line in expected]
    for row, line in zip(rows, expected, strict=True):
        *of_paper, days = (numbers(cell) for cell in line[2:])
        assert [numbers(row[head]) for head in heads.split("|")] == [*of_paper, pytest.approx(1000 * days)], row
        assert row["run"] == ("not run" if "Mixer" in row["model"] else "-")
    if table == "3":
        configs = {
            data: [row["config"] for row in rows if row["pre-training"] == data and row["config"] != "-"]
            for data in CONFIGS
        }
        assert configs == CONFIGS


@pytest.mark.parametrize(
    "row", paper.ROWS, ids=lambda row: f"{row.model}-{row.pretraining}-{row.epochs}-{row.image_size}"
)
def test_the_config_of_a_row_is_the_papers_run(row):
    config = config_file.run(config_file.find(paper_table.config_name(row)))
    if row.epochs != config.total_epochs:
        assert (row.variant, row.epochs) == ("L/16", 7)
        config.total_epochs = row.epochs
    found = data_facts.paper_row(checks.checked(config), None)
    assert (found.variant, found.pretraining, found.epochs) == (row.variant, row.pretraining, row.epochs)


# ----------------------------------------------------------------------------------------------------------------- runs

LINES = [
    {"step": 50, "train/images_per_sec_per_core": 400.0, "val/accuracy": 0.1, "train/images_seen": 204_800},
    {"step": 60, "val/accuracy": 0.5, "real/accuracy": 0.625},
    {"step": 100, "train/images_per_sec_per_core": 200.0, "train/images_seen": 409_600, "minival/accuracy": 0.9},
]
CORE_DAYS = "0.0178"  # (204,800 / 400 + 204,800 / 200) / 86,400


def write_run(folder, config, lines=LINES):
    folder.mkdir()
    run_folder.save(checks.checked(config), ["a class"], folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def finetuning(init_from, size=224, **input_settings):
    config = recipe.finetune("L/16", tasks.IMAGENET, size)
    config.init_from = str(init_from)
    config.input.update(input_settings)
    return config


def test_a_run_on_imagenet_1k(tmp_path, capsys):
    config = recipe.imagenet1k("B/16")
    config.evaluators.real.dataset = "imagenet2012_real"
    config.evaluators.again = recipe.evaluator_settings("classification", split="validation")  # the run's own dataset
    config.evaluators.square = recipe.evaluator_settings("classification", split="validation")
    config.evaluators.square.eval_crop = "resize_square"
    config.evaluators.larger = recipe.evaluator_settings("classification", split="validation")
    config.evaluators.larger.eval_resize = 300
    lines = [*LINES, {"step": 100, "again/accuracy": 0.5, "square/accuracy": 0.9, "larger/accuracy": 0.9}]
    folder = write_run(tmp_path / "mine", config, [*({**line, "val/accuracy": 0.1} for line in lines[:2]), *lines[2:]])
    tables, told = printed(capsys, folder)
    row = the_row(tables, "3", "B/16", "ImageNet-1k", "224")
    yours = ("ImageNet, yours", "ReaL, yours", "training, yours", "core-days, yours", "run")
    assert [row[head] for head in yours] == ["50.00", "62.50", "300", CORE_DAYS, str(folder)]
    others = [other for rows in tables.values() for other in rows if other is not row and "Mixer" in other["model"]]
    assert {other["run"] for other in others} == {"not run"}
    assert {other[head] for other in others for head in yours[:4] if head in other} == {"-"}
    assert told[-1] == (f"{folder}: 300 epochs of imagenet2012, at step 100, evaluated with resize_small, on unknown")


def test_averaged_parameters_count_where_there_are_any(tmp_path, capsys):
    config = recipe.imagenet1k("B/16")
    config.ema_decay = 0.999
    last = {"step": 100, "val/accuracy": 0.5, "val_ema/accuracy": 0.75}
    folder = write_run(tmp_path / "mine", config, [*LINES, last])
    tables, _ = printed(capsys, folder)
    assert the_row(tables, "3", "B/16", "ImageNet-1k", "224")["ImageNet, yours"] == "75.00"


def test_a_pre_training_counts_in_each_row_of_its_weights_and_fine_tuning_in_its_own(tmp_path, capsys):
    pretrained = write_run(tmp_path / "l16", recipe.imagenet21k("L/16", magnitude=20, mixup=0.5))
    small = write_run(tmp_path / "at_224", finetuning(pretrained))
    large = write_run(tmp_path / "at_448", finetuning(pretrained, 448, eval_crop="resize_square"))
    tables, _ = printed(capsys, pretrained, small, large)
    rows = [
        the_row(tables, "3", "L/16", "ImageNet-21k", "224"),
        the_row(tables, "3", "L/16", "ImageNet-21k", "448"),
        the_row(tables, "2", "L/16", "ImageNet-21k", "448"),
    ]
    assert [row["core-days, yours"] for row in rows] == [CORE_DAYS] * 3  # nothing of the fine-tuning
    assert [row["ImageNet, yours"] for row in rows] == ["50.00", "-", "50.00"]
    assert [row["run"] for row in rows] == [f"{pretrained}, {small}", f"{pretrained}", f"{pretrained}, {large}"]
    assert the_row(tables, "3", "L/16", "ImageNet-1k", "224")["run"] == "not run"


@pytest.mark.parametrize(("epochs", "others"), [(7, 14), (14, 7)])
def test_of_two_runs_that_differ_in_epochs(epochs, others, tmp_path, capsys):
    pretrained = write_run(tmp_path / "l16", recipe.jft("L/16", epochs=epochs, learning_rate=1e-3))
    tuned = write_run(tmp_path / "tuned", finetuning(pretrained / "checkpoints" / "100"))
    tables, _ = printed(capsys, tuned, pretrained)
    row = the_row(tables, "3", "L/16", "JFT-300M", "224", str(epochs))
    assert (row["ImageNet, yours"], row["core-days, yours"]) == ("50.00", CORE_DAYS)
    assert the_row(tables, "3", "L/16", "JFT-300M", "224", str(others))["run"] == "not run"


def test_published_weights_and_a_sweep_of_them(tmp_path, capsys):
    tuned = write_run(tmp_path / "tuned", finetuning("L/16-i21k"))
    outcome = sweep_results.Outcome({}, None, 0.03, [0.75, 0.85], 50_000)
    made_by = {"eval_crop": "resize_small", "averaged": False, "device": "8 x TPU v3", "versions": {}}
    made_by["command"] = "mixer-sweep"
    row = paper.find("B/16", "i21k", 224)
    sweep_results.write(epath.Path(tmp_path), dict.fromkeys(tasks.AVG5, outcome), row, made_by)
    tables, told = printed(capsys, tuned, tmp_path)
    assert the_row(tables, "3", "L/16", "ImageNet-21k", "224")["ImageNet, yours"] == "50.00"
    swept = the_row(tables, "3", "B/16", "ImageNet-21k", "224")
    assert (swept["ImageNet, yours"], swept["Avg 5, yours"], swept["run"]) == ("80.00", "80.00", str(tmp_path))
    assert told[-1] == f"{tmp_path}: mixer.sweep, evaluated with resize_small, on 8 x TPU v3"


def other_model():
    config = recipe.imagenet1k("B/16")
    config.model.num_blocks = 3
    return config


def other_epochs():
    config = recipe.imagenet1k("B/16")
    settings = {"total_steps": 100}
    config.update_from_flattened_dict(settings)
    return durations.one_unit_each(config, settings)


def misleading(at):
    """A run whose weights are of no run of the paper, in a folder with such a name."""
    return write_run(at / "x", finetuning(write_run(at / "l16-i21k", other_epochs())))


def of_other_data(at):
    """A run on a collection of one's own that is called as JFT-300M is."""
    folder = write_run(at / "x", recipe.jft("B/16", epochs=7, learning_rate=1e-3))
    history.add(folder, history.Start(0, "", "", {}, {}, 8, {"num_examples": 1_000_000, "batch_size": 8}, {}, {}))
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (of_other_data, "the paper has no run of B/16 on multilabel at 224 pixels, or its model, its epochs or"),
        (lambda at: write_run(at / "y", finetuning(of_other_data(at))), "the paper has no run of L/16 on imagenet2012"),
        (misleading, "the paper has no run of L/16 on imagenet2012"),
        (lambda at: at, "/config.json is not the config of a run"),
        (lambda at: write_run(at / "x", other_model()), "the paper has no run of B/16 on imagenet2012 at 224 pixels"),
        (lambda at: write_run(at / "x", other_epochs()), "the paper has no run of B/16 on imagenet2012 at 224 pixels"),
        (lambda at: write_run(at / "x", recipe.imagenet1k("ViT-B/16")), "the paper has no run of ViT-B/16"),
        (lambda at: write_run(at / "x", finetuning("gone")), "x started from gone, which is no run's folder here"),
        (lambda at: write_run(at / "x", finetuning("B/16-sam")), "the paper has no run of L/16 on imagenet2012"),
        (lambda at: (at / "results.json").write_text("{}") and at, "results.json is not of mixer.sweep (paper)"),
        (
            lambda at: (at / "results.json").write_text(
                '{"paper": null, "tasks": {}, "average_of_five": null, "eval_crop": "x", "device": "y"}'
            ) and at,
            "the paper has no row for this sweep; mixer.sweep --pretraining says what it is",
        ),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_one_line(make, said, tmp_path, capsys):
    assert paper_table.main([str(make(tmp_path))]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("paper_table.py: ")
    assert said in error


# ------------------------------------------------------------------------------------------------------------ preflight


def test_what_pre_flight_estimates(monkeypatch, capsys):
    seen = []

    def examine(config, mesh, facts, memory, largest):
        seen.append((config.model.variant, config.total_epochs, mesh, memory, facts.num_classes, largest))
        return {"images_per_sec_per_core": 1234.5, "core_days": 400.0}

    monkeypatch.setattr("mixer.performance.tpu_topology.mesh_of", lambda topology: f"mesh of {topology}")
    monkeypatch.setattr("mixer.performance.tpu_topology.memory_of", lambda mesh: f"memory of the {mesh}")
    monkeypatch.setattr("mixer.preflight.examine", examine)
    tables, told = printed(capsys, "--topology", "v3:8x8", "--models", "L/16,S/32")
    assert seen == [
        ("L/16", 300, "mesh of v3:8x8", "memory of the mesh of v3:8x8", 1000, False),
        ("L/16", 300, "mesh of v3:8x8", "memory of the mesh of v3:8x8", 21_843, False),
        ("S/32", 5, "mesh of v3:8x8", "memory of the mesh of v3:8x8", 18_291, False),
        ("L/16", 14, "mesh of v3:8x8", "memory of the mesh of v3:8x8", 18_291, False),
    ]  # each config once
    assert {row["model"] for rows in tables.values() for row in rows} == {"Mixer-L/16", "Mixer-S/32"}
    assert {row["training, preflight"] for rows in tables.values() for row in rows} == {"1,234"}
    days = [the_row(tables, "3", "L/16", "JFT-300M", "224", epochs)["core-days, preflight"] for epochs in ("7", "14")]
    assert days == ["200", "400"]
    assert told[-1] == "pre-flight: the compiler's estimate for v3:8x8, optimistic"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_a_line_says_so(capsys):
    tables, told = printed(capsys, "--topology", "v3:8x8")
    assert "training, preflight" not in tables["3"][0]
    assert [line for line in told if "pre-flight" in line] == [
        "no estimates of pre-flight: --topology=v3:8x8: libtpu is missing: run make install-preflight in a clone, and "
        "use .venv-preflight/bin/python"
    ]


def test_a_model_that_the_paper_does_not_have(capsys):
    assert paper_table.main(["--models", "B/16,B/17"]) == 1
    assert capsys.readouterr().err.startswith("paper_table.py: --models: the paper has no Mixer 'B/17'; it has B/16, ")


def test_as_text_the_columns_are_even(capsys):
    assert paper_table.main(["--models", "B/16"]) == 0
    title, heads, of_whom, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert title == "Table 3, evaluated with resize_small"  # Table 2 has no B/16
    assert " ".join(heads.split()) == "pre-training model px epochs config ImageNet ReaL Avg 5 inference core-days run"
    assert of_whom.split() == ["paper"] * 5
    assert len(rows) == 3
    assert {row.index("not run") for row in rows} == {heads.index("run")}
