"""Configs from the command line, in a run's folder, and out of bounds: every mistake is told in one line."""

import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_flags

from mixer.config import checks, durations, recipe, run_folder
from mixer.config import command_line as commands
from mixer.data import augment
from mixer.runtime.errors import UserError
from mixer.training import losses, optimizer, sharding
from mixer.transfer import resolution

CONFIG = str(pathlib.Path(__file__).parents[1] / "configs" / "b16_i1k.py")


@pytest.fixture
def command_line(monkeypatch):
    """Parses these arguments as `mixer.train` does, with flags of its own; returns the config and its name."""

    def parse(*arguments):
        values = flags.FlagValues()
        argv = ["train", *arguments]
        sys.modules.pop("config_config", None)  # a config file would be run in the module of the one before
        monkeypatch.setattr(flags, "FLAGS", values)
        config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        flags.DEFINE_bool("inspect", False, "", flag_values=values)
        commands.parse_flags(argv)
        return commands.from_flags()

    return parse


def complaint(parse, *arguments):
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------- command line


def test_a_config_file_gives_a_locked_config_and_its_name(command_line):
    config, name = command_line("--config", CONFIG, "--config.optimizer.learning_rate=0.5", "--config.model.remat")
    assert (name, config.optimizer.learning_rate, config.model.remat, config.batch_size) == ("b16_i1k", 0.5, True, 4096)
    with pytest.raises(AttributeError):
        config.new_field = 1


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("--config.total_epochs=60", (None, None, 60.0)),
        ("--config.total_steps=60", (60, None, None)),
        ("--config.total_examples=60", (None, 60, None)),
        ("--config.seed=60", (None, None, 300.0)),
    ],
)
def test_a_duration_on_the_command_line_replaces_the_files(command_line, argument, values):
    config, _ = command_line(f"--config={CONFIG}", argument)
    assert (config.total_steps, config.total_examples, config.total_epochs) == values
    assert (config.warmup_steps, config.warmup_epochs) == (10_000, None)


def test_values_may_follow_in_an_argument_of_their_own(command_line):
    config, _ = command_line("--config", CONFIG, "--config.batch_size", "64", "--noconfig.input.flip")
    assert (config.batch_size, config.input.flip) == (64, False)


@pytest.mark.parametrize("text", ["0.1,0.5", "(0.1, 0.5)"])
def test_a_range(command_line, text):
    assert command_line("--config", CONFIG, f"--config.input.crop_area={text}")[0].input.crop_area == (0.1, 0.5)


@pytest.mark.parametrize(("text", "shots"), [("5", (5,)), ("1,5", (1, 5)), ("(2, 3, 4)", (2, 3, 4)), ("(7,)", (7,))])
def test_shots(command_line, text, shots):
    assert command_line("--config", CONFIG, f"--config.fewshot.shots={text}")[0].fewshot.shots == shots


def test_a_config_file_may_take_an_argument(command_line, tmp_path):
    path = tmp_path / "seeds.py"
    path.write_text(
        "from mixer import recipe\n"
        "def get_config(seed):\n"
        "    config = recipe.base()\n"
        "    config.seed = int(seed)\n"
        "    return config\n"
    )
    config, name = command_line("--config", f"{path}:7")
    assert (config.seed, name) == (7, "seeds")
    assert "line 4: ValueError: invalid literal for int()" in complaint(command_line, "--config", f"{path}:x")
    assert "missing 1 required positional argument: 'seed'" in complaint(command_line, "--config", str(path))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--config.total_epoch=60"], "--config.total_epoch: no such setting; the nearest is --config.total_epochs"),
        (
            ["--config.optimizer.lerning_rate=1"],
            "--config.optimizer.lerning_rate: no such setting; the nearest is --config.optimizer.learning_rate",
        ),
        (
            ["--config.optimiser.learning_rate", "1"],
            "--config.optimiser.learning_rate: no such setting; the nearest is --config.optimizer.learning_rate",
        ),
        (["--config.batch_size.x=1"], "--config.batch_size.x: no such setting; the nearest is --config.batch_size"),
        (["--workdr=x"], "--workdr: no such flag; the nearest is --workdir"),
        (["--config.input=x"], "config.input is a group of settings; give each by itself, such as --config.input.NAME"),
        (["--config.batch_size=abc"], "config.batch_size='abc': expected a whole number"),
        (["--config.batch_size=1.5"], "config.batch_size='1.5': expected a whole number"),
        (["--config.model.num_blocks=two"], "config.model.num_blocks='two': expected a whole number"),
        (["--config.total_epochs=many"], "config.total_epochs='many': expected a number"),
        (["--config.model.remat=maybe"], "config.model.remat='maybe': expected true or false"),
        (["--config.seed=1", "--config.optimizer.learning_rate=a: b"], "config.optimizer.learning_rate='a: b': expec"),
        (
            ["--config.total_steps=5", "--config.total_epochs=2"],
            "total_steps and total_epochs say the same thing in two units; give one of them",
        ),
        (["--config.total_epochs"], "Missing value for flag --config.total_epochs"),
        (["--config.input.crop_area=0.5"], "config.input.crop_area=(0.5,): expected the smallest and the largest, nei"),
        (["--config.input.crop_area=a,b"], "config.input.crop_area=('a,b',): expected the smallest and the largest"),
        (["--config.fewshot.shots=few"], "config.fewshot.shots=('few',): expected whole numbers above 0, such as 5 or"),
        (["--config.fewshot.shots=1,0"], "config.fewshot.shots=(1, 0): expected whole numbers above 0"),
        (["--config.fewshot.shots=2.5"], "config.fewshot.shots=(2.5,): expected whole numbers above 0"),
        (["--config.fewshot.shots=()"], "config.fewshot.shots=(): expected whole numbers above 0"),
        (["--config.input.crop_aspect=2,1"], "config.input.crop_aspect=(2, 1): expected the smallest and the largest"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_line(command_line, arguments, line):
    assert complaint(command_line, "--config", CONFIG, *arguments).startswith(line)


def test_without_a_config_file(command_line):
    missing = "--config is missing: give a file, such as --config configs/quickstart.py"
    assert complaint(command_line) == missing
    assert complaint(command_line, "--config.seed=1") == missing
    assert complaint(command_line, "--config") == "Missing value for flag --config"
    assert complaint(command_line, "--confg", CONFIG) == "--confg: no such flag; the nearest is --config"


@pytest.mark.parametrize("override", [[], ["--config.seed=1"]], ids=["plain", "override"])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "no such file"),
        ("x = 1\ndef get_config(:\n", "line 2: invalid syntax"),
        ("def get_config():\n    raise RuntimeError('first\\nsecond')\n", "line 2: RuntimeError: first"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        (
            "def get_config():\n    return open('/no/file')\n",
            "line 2: FileNotFoundError: [Errno 2] No such file or dir",
        ),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def config():\n    return 1\n", "the file has no function get_config"),
        ("def get_config():\n    pass\n", "get_config() returns None, not a ConfigDict"),
        (
            "from mixer import recipe\ndef get_config():\n    c = recipe.base()\n    c.seed = 'x'\n    return c\n",
            "line 4: TypeError: Could not override field 'seed'",
        ),
    ],
    ids=["missing", "syntax", "raises", "divides", "opens", "imports", "nameless", "none", "type"],
)
def test_a_broken_config_file_is_one_line(command_line, tmp_path, text, line, override):
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    assert complaint(command_line, "--config", str(path), *override).startswith(f"--config {path}: {line}")


def test_a_config_file_cannot_invent_or_leave_out_a_setting(command_line, tmp_path):
    path = tmp_path / "typo.py"
    path.write_text(
        "from mixer import recipe\n"
        "def get_config():\n"
        "    config = recipe.base()\n"
        "    config.optimizer.weigth_decay = 0.3\n"
        "    return config\n"
    )
    line = "config.optimizer.weigth_decay: no such setting; the nearest is config.optimizer.weight_decay"
    assert complaint(command_line, "--config", str(path)) == line
    path.write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'seed': 1})\n")
    assert "config.accumulate_steps is missing" in complaint(command_line, "--config", str(path))


def test_as_a_command_it_prints_the_line_alone(tmp_path):
    """The way of `mixer.train`, without its imports: absl must not add usage, nor Python a traceback."""
    script = tmp_path / "command.py"
    script.write_text(
        "import sys\n"
        "from absl import app\n"
        "from ml_collections import config_flags\n"
        "from mixer import command_line\n"
        "from mixer.errors import UserError\n"
        "config_flags.DEFINE_config_file('config', None, '')\n"
        "try:\n"
        "    app.run(lambda argv: print(command_line.from_flags()[0].seed), flags_parser=command_line.parse_flags)\n"
        "except UserError as error:\n"
        "    sys.exit(f'error: {error}')\n"
    )
    run = [sys.executable, str(script), "--config", CONFIG]
    good = subprocess.run([*run, "--config.seed=3"], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout, good.stderr) == (0, "3\n", "")
    bad = subprocess.run([*run, "--config.seed=x"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, "", "error: config.seed='x': expected a whole number\n")


# -------------------------------------------------------------------------------------------------------------- checks


def base_with(**fields):
    config = recipe.base()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"loss": "xent"}, "config.loss='xent': expected one of sigmoid_xent, softmax_xent"),
        ({"sharding": "zero"}, "config.sharding='zero': expected one of data_parallel, fully_sharded"),
        ({"model__dtype": "float16"}, "config.model.dtype='float16': expected one of bfloat16, float32"),
        ({"optimizer__name": "sgd"}, "config.optimizer.name='sgd': expected one of adam, momentum"),
        ({"optimizer__decay": "step"}, "config.optimizer.decay='step': expected one of linear, cosine, constant"),
        ({"input__crop": "centre"}, "config.input.crop='centre': expected one of inception, random, pad, resize"),
        ({"input__eval_crop": "x"}, "config.input.eval_crop='x': expected one of resize_small, resize_square"),
        ({"seed": -1}, "config.seed=-1: expected at least 0 and at most 2147483647"),
        ({"batch_size": 0}, "config.batch_size=0: expected at least 1"),
        ({"ema_decay": 1.0}, "config.ema_decay=1.0: expected at least 0 and at most 0.999999"),
        ({"model__dropout": 1.0}, "config.model.dropout=1.0: expected at least 0 and at most 0.999"),
        ({"model__num_blocks": 0}, "config.model.num_blocks=0: expected at least 1"),
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate=nan: expected at least 0"),
        ({"optimizer__learning_rate": float("inf")}, "config.optimizer.learning_rate=inf: expected at least 0"),
        ({"optimizer__beta1": 1.0}, "config.optimizer.beta1=1.0: expected at least 0 and at most 0.999999"),
        ({"mixup__group": 1}, "config.mixup.group=1: expected at least 2"),
        ({"input__max_bad_share": 1.5}, "config.input.max_bad_share=1.5: expected at least 0 and at most 1"),
        ({"fewshot__seeds": 0}, "config.fewshot.seeds=0: expected at least 1"),
        ({"fewshot__l2": 0.0}, "config.fewshot.l2=0.0: expected at least 0.001"),
        ({"fewshot__eval_crop": "x"}, "config.fewshot.eval_crop='x': expected one of resize_small, resize_square"),
        ({"fewshot__eval_resize": 200}, "config.fewshot.eval_resize=200 is smaller than input.image_size=224, which"),
        ({"checkpoint__keep_last": 0}, "config.checkpoint.keep_last=0: expected at least 1"),
        ({"log_steps": 0}, "config.log_steps=0: expected a finite number above 0"),
        ({"total_epochs": -1.0}, "config.total_epochs=-1.0: expected a finite number above 0"),
        ({"total_epochs": float("inf")}, "config.total_epochs=inf: expected a finite number above 0"),
        ({"warmup_steps": -1}, "config.warmup_steps=-1: expected at least 0"),
        ({"accumulate_steps": 3}, "config.batch_size=4096 is not divisible by accumulate_steps=3"),
        ({"total_steps": 5}, "exactly one of total_steps, total_examples, total_epochs must be set, not 2"),
        ({"log_steps": None}, "exactly one of log_steps, log_examples, log_epochs must be set, not 0"),
        ({"model__variant": "B"}, "config.model.variant: model variant 'B': expected one of Ti, S, B, L, H (Mixer)"),
        (
            {"model__variant": "ViT-B/16", "model__tokens_mlp_dim": 4},
            "config.model: model variant 'ViT-B/16' has no tokens_mlp_dim, which was set to 4",
        ),
        (
            {"input__image_size": 225},
            "config.input.image_size=225 is not a multiple of the patch size of config.model.variant='B/16'; "
            "the nearest that is: 224",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_that_is_not_allowed_is_one_line(fields, line):
    with pytest.raises(UserError) as caught:
        checks.checked(base_with(**fields))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_no_warm_up_and_optional_fields_are_allowed():
    config = checks.checked(base_with(warmup_steps=0, model__num_blocks=3, input__eval_resize=256))
    assert (config.warmup_steps, config.model.num_blocks) == (0, 3)


@settings(max_examples=100, deadline=None)
@given(
    examples=st.integers(1, 10**7),
    batch_size=st.integers(1, 10**4),
    epochs=st.floats(0, 1000, allow_subnormal=False),
    count=st.integers(0, 10**9),
)
def test_steps_in_every_unit(examples, batch_size, epochs, count):
    config = base_with(batch_size=batch_size)
    recipe.duration(config, "total", epochs=epochs)
    recipe.duration(config, "warmup", examples=count)
    recipe.duration(config, "log", steps=count)
    total = durations.steps(config, "total", examples)
    assert (total == 0) == (epochs == 0)
    assert total == (epochs > 0) or abs(total - epochs * examples / batch_size) <= 0.5
    warmup = durations.steps(config, "warmup", examples)
    assert (warmup == 0) == (count == 0)
    assert warmup == (count > 0) or abs(warmup - count / batch_size) <= 0.5
    assert durations.steps(config, "log", examples) == count


# ------------------------------------------------------------------------------------------------------ a run's folder


def test_a_config_comes_back_from_the_runs_folder(tmp_path):
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


def test_every_difference_to_the_config_of_the_folder_is_listed(tmp_path):
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


def test_what_changes_nothing_that_is_computed_may_change(tmp_path):
    run_folder.save(checks.checked(recipe.base()), ["cat", "dog"], tmp_path)
    other = base_with(
        log_steps=None, log_epochs=1.0, eval_epochs=1.0, checkpoint_steps=7, checkpoint__keep_last=9,
        profile_steps=3, input__data_dir="/data", input__max_bad_share=0.5, fewshot__dataset="cifar10",
        fewshot__shots=(2,),
    )  # fmt: skip
    run_folder.check_same(checks.checked(other), tmp_path)
    run_folder.save(checks.checked(other), ["cat"], tmp_path)
    loaded = run_folder.load_config(tmp_path)
    assert (loaded.input.data_dir, loaded.checkpoint_steps, loaded.checkpoint.keep_last) == ("/data", 7, 9)


@pytest.mark.parametrize("text", [None, "", "{", "[1, 2]", "3"])
def test_a_folder_without_a_config_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / run_folder.CONFIG_FILE).write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not the config of a run") as caught:
        run_folder.load_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_flat_names_every_field():
    config = ConfigDict({"a": 1, "b": {"c": (1, 2), "d": {"e": None}}})
    assert checks.flat(config) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


def test_the_names_to_choose_from_are_those_that_the_code_knows():
    known = {
        "loss": tuple(losses.LOSSES),
        "sharding": sharding.SHARDINGS,
        "optimizer.name": optimizer.OPTIMIZERS,
        "optimizer.decay": optimizer.DECAYS,
        "input.crop": augment.CROPS,
        "input.eval_crop": augment.EVAL_CROPS,
        "fewshot.eval_crop": augment.EVAL_CROPS,
        "resize": resolution.METHODS,
        "model.dtype": ("bfloat16", "float32"),
        "checkpoint.on_error": ("stop", "continue"),
    }
    assert {path: set(names) for path, names in configuration.CHOICES.items()} == {
        path: set(names) for path, names in known.items()
    }
