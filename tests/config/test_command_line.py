"""Configs from the command line: every mistake is told in one line."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from absl import flags
from ml_collections import config_flags

from mixer.config import checks, config_file
from mixer.config import command_line as commands
from mixer.runtime.errors import UserError

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "b16_i1k.py")


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


def test_a_config_file_gives_a_locked_config_and_its_name(command_line):
    config, name = command_line("--config", CONFIG, "--config.optimizer.learning_rate=0.5", "--config.model.remat")
    assert (name, config.optimizer.learning_rate, config.model.remat, config.batch_size) == ("b16_i1k", 0.5, True, 4096)
    with pytest.raises(AttributeError):
        config.new_field = 1


def test_a_pyramid_is_numbers_joined_by_commas(command_line):
    config, _ = command_line("--config", CONFIG, "--config.model.num_blocks=2", "--config.model.pyramid=196,49")
    assert config.model.pyramid == (196, 49)
    config, _ = command_line("--config", CONFIG, "--config.model.pyramid=None")
    assert config.model.pyramid is None


def test_a_tilde_at_the_start_of_a_path_is_a_home_folder(command_line, tmp_path, monkeypatch):
    """A shell leaves that of --workdir=~/x as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text(pathlib.Path(CONFIG).read_text() + "\n_get = get_config\ndef get_config():\n"
        "    config = _get()\n    config.input.data_dir = '~/in_the_file'\n    return config\n")  # fmt: skip
    config, name = command_line("--config=~/own.py", "--config.init_from=~/runs/a~b", "--workdir=~/x")
    assert (name, config.input.data_dir) == ("own", f"{tmp_path}/in_the_file")
    assert config.init_from == f"{tmp_path}/runs/a~b"
    assert flags.FLAGS.workdir == f"{tmp_path}/x"
    config, _ = command_line("--config", CONFIG, "--config.input.data_dir", "~/own")
    assert config.input.data_dir == f"{tmp_path}/own"


def test_arguments_that_begin_with_a_tilde_are_paths_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    assert commands.parse_flags(["predict", "~/a.jpg", "~", "b~.jpg", "~nobody_/c"]) == [
        "predict", "/home/me/a.jpg", "/home/me", "b~.jpg", "~nobody_/c",
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("quickstart", "input.eval_resize"), ("b16_i1k", "model.head_bias_init"),
        ("b16_i1k", "evaluators.fewshot_pets.every_steps"), ("cifar10", "model.tokens_mlp_dim"),
        ("cifar10", "input.label_key"), ("cifar10", "model.pyramid"),
    ],
)  # fmt: skip
def test_none_unsets_what_a_config_file_has_set(command_line, config, name):
    """Numbers too, for which absl would ask."""
    found, _ = command_line("--config", config, f"--config.{name}=None")
    assert checks.flat(found)[name] is None
    numbers = {"input.eval_resize": 300, "model.head_bias_init": -5.0, "model.tokens_mlp_dim": 48}
    if name in numbers:  # the last one counts
        found, _ = command_line("--config", config, f"--config.{name}=None", f"--config.{name}={numbers[name]}")
        assert checks.flat(found)[name] == numbers[name]


@pytest.mark.parametrize(
    ("config", "arguments", "reset"),
    [
        ("b16_i1k", ["input.randaugment.layers=0"], {"input.randaugment.magnitude": 10.0}),
        ("b16_i1k", ["model.stochastic_depth=0"], {"model.stochastic_depth_rescale": True}),
        ("b16_i1k", ["input.crop=resize"], {"input.crop_aspect": [3 / 4, 4 / 3]}),
        ("cifar10", ["optimizer.name=momentum"], {"optimizer.beta2": 0.999}),
        ("cifar10", ["model.token_mixing=shared"], {"model.token_groups": 1}),
        ("cifar10", ["init_from=runs/a"], {"stem_init": "random", "model.identity_init": False}),
    ],
)
def test_what_an_argument_leaves_unread_of_a_config_file_is_reset(command_line, config, arguments, reset):
    found, _ = command_line("--config", config, *(f"--config.{argument}" for argument in arguments))
    fields = checks.flat(found)
    assert {name: fields[name] for name in reset} == reset


def test_what_was_given_and_is_not_read_is_still_an_error(command_line, tmp_path):
    with pytest.raises(UserError, match=r"config\.model\.token_groups=4 would not be read: .*; leave it at 1"):
        command_line("--config", "cifar10", "--config.model.token_mixing=shared", "--config.model.token_groups=4")
    (tmp_path / "own.py").write_text(
        "from configs import cifar10\ndef get_config():\n    config = cifar10.get_config()\n"
        "    config.model.token_mixing = 'shared'\n    return config\n"
    )
    with pytest.raises(UserError, match=r"config\.model\.token_groups=4 would not be read: "):
        command_line("--config", str(tmp_path / "own.py"), "--config.seed=1")


def test_values_may_follow_in_an_argument_of_their_own(command_line):
    config, _ = command_line("--config", CONFIG, "--config.batch_size", "64", "--noconfig.input.flip")
    assert (config.batch_size, config.input.flip) == (64, False)


@pytest.mark.parametrize("text", ["0.1,0.5", "(0.1, 0.5)"])
def test_a_range(command_line, text):
    assert command_line("--config", CONFIG, f"--config.input.crop_area={text}")[0].input.crop_area == (0.1, 0.5)


@pytest.mark.parametrize(("text", "shots"), [("5", (5,)), ("1,5", (1, 5)), ("(2, 3, 4)", (2, 3, 4)), ("(7,)", (7,))])
def test_shots(command_line, text, shots):
    arguments = ["--config", CONFIG, "--config.fewshot.dataset=cifar10", f"--config.fewshot.shots={text}"]
    assert command_line(*arguments)[0].fewshot.shots == shots


@pytest.mark.parametrize(
    ("text", "writers"),
    [
        ("wandb", ("wandb",)),
        ("tensorboard,wandb", ("tensorboard", "wandb")),
        ("('tensorboard', 'wandb')", ("tensorboard", "wandb")),
        ("()", ()),
        ("", ()),
    ],
)
def test_names(command_line, text, writers):
    assert command_line("--config", CONFIG, f"--config.metrics.writers={text}")[0].metrics.writers == writers


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
    assert f"{path}: an argument is missing: {path}:seed" in complaint(command_line, "--config", str(path))


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
        (["--config.metrics.writers=tensorboard,wanbd"], "config.metrics.writers='wanbd': expected one of tensorboard"),
        (["--config.metrics.writers=3"], "config.metrics.writers='3': expected one of tensorboard, wandb"),
        (["--config.input.crop_aspect=2,1"], "config.input.crop_aspect=(2, 1): expected the smallest and the largest"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_line(command_line, arguments, line):
    assert complaint(command_line, "--config", CONFIG, *arguments).startswith(line)


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--workdir=", "--workdir is empty: give a folder, or leave it out for runs/quickstart"),
        ("--config.input.data_dir=", "config.input.data_dir is empty: give a value, or leave it out"),
        ("--config.init_from=", "config.init_from is empty: give a value, or leave it out"),
        ("--config.seed=None", "config.seed='None': expected a whole number"),
        ("--config.evaluators.v2.every_steps=None", "--config.evaluators.v2.every_steps: no such setting; the nearest"),
    ],
)
def test_what_is_empty_or_cannot_be_unset_is_one_line(command_line, argument, line):
    def read():
        command_line("--config", "quickstart", argument)
        commands.workdir("quickstart")

    assert complaint(read).startswith(line)


def test_without_a_config_file(command_line):
    missing = "--config is missing: give a file, or the name of one that comes with mixer, such as --config quickstart"
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
            "from ml_collections import FrozenConfigDict\ndef get_config():\n    return FrozenConfigDict({})\n",
            "get_config() returns a FrozenConfigDict; return ConfigDict(it) instead",
        ),
        (
            "from mixer import recipe\ndef get_config():\n    c = recipe.base()\n    c.seed = 'x'\n    return c\n",
            "line 4: TypeError: Could not override field 'seed'",
        ),
    ],
    ids=["missing", "syntax", "raises", "divides", "opens", "imports", "nameless", "none", "frozen", "type"],
)
def test_a_broken_config_file_is_one_line(command_line, tmp_path, text, line, override):
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    assert complaint(command_line, "--config", str(path), *override).startswith(f"--config {path}: {line}")


def test_from_python_too_a_config_file_imports_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "beside_it.py").write_text("from mixer import recipe\nbase = recipe.base\n")
    (tmp_path / "own.py").write_text("def get_config():\n    from beside_it import base\n    return base()\n")
    before = list(sys.path)
    config = config_file.run(config_file.find("~/own.py"))
    assert config.seed == 0
    assert sys.path == before
    config.input.data_dir = "~/data"
    assert checks.checked(config).input.data_dir == f"{tmp_path}/data"


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
    """As `mixer.train`, without its imports: absl must not add usage, nor Python a traceback."""
    script = tmp_path / "command.py"
    script.write_text(
        "from ml_collections import config_flags\n"
        "from mixer.config import command_line\n"
        "def define_flags():\n"
        "    config_flags.DEFINE_config_file('config', None, '')\n"
        "command_line.run(lambda argv: print(command_line.from_flags()[0].seed), define_flags)\n"
    )
    command = [sys.executable, str(script), "--config", CONFIG]

    def run(argument):
        done = subprocess.run([*command, argument], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert run("--config.seed=3") == (0, "3\n", "")
    assert run("--config.seed=x") == (1, "", "error: config.seed='x': expected a whole number\n")
    status, _, line = run("seed=3")
    assert (status, line.count("\n")) == (1, 1)
    assert line.startswith("error: unexpected argument 'seed=3'; flags look like --NAME=VALUE")


def test_a_config_file_imports_what_lies_beside_it(command_line, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_a_config.py").write_text("SEED = 11\n")
    path = tmp_path / "imports.py"
    path.write_text(
        "import beside_a_config\n"
        "from mixer import recipe\n"
        "def get_config():\n"
        "    config = recipe.base()\n"
        "    config.seed = beside_a_config.SEED\n"
        "    return config\n"
    )
    assert command_line("--config", str(path))[0].seed == 11


def test_a_colon_in_the_path_of_a_config_is_named(command_line, tmp_path):
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "seeds.py"
    path.write_text("from mixer import recipe\nget_config = recipe.base\n")
    line = f"--config {path}: what follows the first colon are arguments; give a path without a colon"
    assert complaint(command_line, "--config", str(path)) == line


@pytest.mark.parametrize("name", ["input.data_dir", "init_from", "fewshot.data_dir"])
def test_none_is_no_name_of_a_folder(command_line, name):
    given = ["--config.fewshot.dataset=cifar10"] if name.startswith("fewshot") else []
    config, _ = command_line("--config", CONFIG, *given, f"--config.{name}=None")
    assert checks.flat(config)[name] is None


def test_too_little_memory_is_one_line():
    script = (
        "import jax.numpy as jnp\nfrom mixer.config import command_line\n"
        "command_line.run(lambda argv: jnp.ones((10**7, 10**7)).block_until_ready(), lambda: None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: the devices have too little memory \(RESOURCE_EXHAUSTED: [^\n]+\): give them fewer images at a time; "
        r"in training by more config.accumulate_steps, then try config.sharding=fully_sharded and config.model.remat\n",
        done.stderr,
    ), done.stderr  # fmt: skip


def test_jax_says_that_it_falls_back_to_the_cpu():
    script = (
        "import logging\nfrom mixer.config import command_line\n"
        "command_line.run(lambda argv: logging.getLogger('jax._src.xla_bridge').warning('Falling back'), lambda: None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Falling back" in done.stderr


@pytest.mark.parametrize("platform", ["cuda", "nosuch"])
def test_a_platform_that_is_not_there_is_one_line(platform):
    script = (
        "import jax\nfrom mixer.config import command_line\ncommand_line.run(lambda argv: jax.devices(), lambda: None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": platform}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no such device here")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("spec", ["b16_i1k", "b16_i1k.py", "configs/b16_i1k.py", "configs/b16_i1k"])
def test_a_config_that_comes_with_the_package_is_found_by_its_name(command_line, tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    config, name = command_line("--config", spec, "--config.seed=7")
    assert (name, config.seed, config.batch_size) == ("b16_i1k", 7, 4096)
    assert command_line(f"--config={spec}")[1] == "b16_i1k"


def test_a_file_of_the_user_comes_before_one_of_the_package(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b16_i1k").write_text((pathlib.Path(CONFIG).parent / "cifar10.py").read_text())
    assert command_line("--config", "b16_i1k")[0].input.dataset != "imagenet2012"
    assert command_line("--config", "quickstart:digits")[0].input.dataset == "digits/32-coloured"


def test_a_name_like_one_of_the_package(command_line):
    assert complaint(command_line, "--config", "b16_i22k") == (
        "--config b16_i22k: no such file; the nearest is b16_i21k"
    )
    assert complaint(command_line, "--config", "folder/b16_i1k") == "--config folder/b16_i1k: no such file"


def test_the_wheel_has_every_package_and_config():
    """The packages are listed in pyproject.toml, because the configs come from a folder beside the package."""
    root = pathlib.Path(__file__).parents[2]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {str(file.parent.relative_to(root)).replace("/", ".") for file in (root / "mixer").rglob("*.py")}
    assert sorted(listed) == sorted(found | {"mixer.configs"})
